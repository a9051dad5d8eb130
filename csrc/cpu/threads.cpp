// Where the process has an OpenMP runtime, as it has once torch is imported, its threads are used: they are the ones
// that spin for a while after every loop of torch, and threads of our own would have to share the processors with them.
// Else, and in a forked child, where OpenMP's threads are gone and its runtime hangs, a small pool of our own.
#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#define TORCHASSAY_PAUSE() _mm_pause()
#else
#define TORCHASSAY_PAUSE() std::this_thread::yield()
#endif

namespace torchassay {
namespace {

constexpr int kSpins = 2000;  // about 20 microseconds: a sleeping thread takes as long to wake

// One loop: whoever takes part takes the next chunk until there is none.
struct Loop {
    const std::function<void(int64_t, int64_t)>& body;
    int64_t units, chunk;
    std::atomic<int64_t> next;

    void work() {
        for (;;) {
            const int64_t begin = next.fetch_add(chunk);
            if (begin >= units) return;
            body(begin, begin + chunk < units ? begin + chunk : units);
        }
    }
};

class Pool {
public:
    // One loop at a time; false if another caller has the pool.
    bool run(Loop& loop, int threads) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (!mine) return false;
        while (started_ < threads - 1) start();
        loop_ = &loop;
        places_.store(threads - 1);
        inside_.store(kOpen);
        {
            std::lock_guard<std::mutex> lock(sleep_);
            job_.fetch_add(1);
        }
        if (sleeping_.load()) wake_.notify_all();
        loop.work();
        // all chunks are taken: wait for those who work on one, not for those who have yet to wake
        inside_.fetch_and(~kOpen);
        for (int i = 0; inside_.load(std::memory_order_acquire); ++i) i < kSpins ? pause() : std::this_thread::yield();
        return true;
    }

private:
    static constexpr int kOpen = 1 << 30;  // in inside_: the loop may be entered

    static void pause() { TORCHASSAY_PAUSE(); }

    void start() {
        const int64_t seen = job_.load();
        std::thread([this, seen] { serve(seen); }).detach();
        ++started_;
    }

    void serve(int64_t seen) {
        for (;;) {
            for (int i = 0; i < kSpins && job_.load(std::memory_order_acquire) == seen; ++i) pause();
            if (job_.load() == seen) {
                std::unique_lock<std::mutex> lock(sleep_);
                ++sleeping_;
                wake_.wait(lock, [&] { return job_.load() != seen; });
                --sleeping_;
            }
            seen = job_.load();
            for (int inside = inside_.load(); inside & kOpen;)
                if (inside_.compare_exchange_weak(inside, inside + 1)) {
                    if (places_.fetch_sub(1) > 0) loop_->work();  // fewer may be wanted than were once started
                    inside_.fetch_sub(1, std::memory_order_release);
                    break;
                }
        }
    }

    std::mutex busy_, sleep_;
    std::condition_variable wake_;
    std::atomic<int64_t> job_{0};
    std::atomic<int> inside_{0}, places_{0}, sleeping_{0};
    int started_ = 0;
    Loop* loop_ = nullptr;
};

// Never destroyed: its threads may outlive the interpreter's shutdown. A forked child has none of the threads and may
// have copied a held lock, so it gets a pool of its own and leaves the old one behind.
std::atomic<Pool*> pool{new Pool};
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] {
    pool.store(new Pool);
    forked.store(true);
});

// GCC's entry to a parallel region, which LLVM's and Intel's runtimes have too.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

Parallel openmp() {
    static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    const bool unsafe = forked.load() || registered != 0;  // or: nobody would tell us of a fork
    return unsafe ? nullptr : found;
}

}  // namespace

void parallel_for(int64_t units, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& body) {
    const int64_t chunks = (units + chunk - 1) / chunk;
    if (threads > chunks) threads = int(chunks);
    Loop loop{body, units, chunk, {0}};
    if (threads < 2)
        loop.work();
    else if (const Parallel parallel = openmp())
        parallel([](void* data) { static_cast<Loop*>(data)->work(); }, &loop, unsigned(threads), 0);
    else if (!pool.load()->run(loop, threads))
        loop.work();
}

}  // namespace torchassay
