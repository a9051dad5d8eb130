#include "threads.h"

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

class Pool {
public:
    // One job at a time; false if another caller has the pool.
    bool run(int64_t units, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& body) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (!mine) return false;
        while (started_ < threads - 1) start();
        body_ = &body, units_ = units, chunk_ = chunk;
        next_.store(0);
        places_.store(threads - 1);
        inside_.store(kOpen);
        {
            std::lock_guard<std::mutex> lock(sleep_);
            job_.fetch_add(1);
        }
        if (sleeping_.load()) wake_.notify_all();
        work();
        // all chunks are taken: wait for those who work on one, not for those who have yet to wake
        inside_.fetch_and(~kOpen);
        for (int i = 0; inside_.load(std::memory_order_acquire); ++i) i < kSpins ? pause() : std::this_thread::yield();
        return true;
    }

private:
    static constexpr int kOpen = 1 << 30;  // in inside_: the job may be entered

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
                    if (places_.fetch_sub(1) > 0) work();  // fewer may be wanted than were once started
                    inside_.fetch_sub(1, std::memory_order_release);
                    break;
                }
        }
    }

    void work() {
        for (;;) {
            const int64_t begin = next_.fetch_add(chunk_);
            if (begin >= units_) return;
            (*body_)(begin, begin + chunk_ < units_ ? begin + chunk_ : units_);
        }
    }

    std::mutex busy_, sleep_;
    std::condition_variable wake_;
    std::atomic<int64_t> job_{0}, next_{0};
    std::atomic<int> inside_{0}, places_{0}, sleeping_{0};
    int started_ = 0;
    const std::function<void(int64_t, int64_t)>* body_ = nullptr;
    int64_t units_ = 0, chunk_ = 1;
};

// Never destroyed: its threads may outlive the interpreter's shutdown. A forked child has none of the threads and may
// have copied a held lock, so it gets a pool of its own and leaves the old one behind.
std::atomic<Pool*> pool{nullptr};

Pool* the_pool() {
    static const bool once = [] {
        pthread_atfork(nullptr, nullptr, [] { pool.store(new Pool); });
        pool.store(new Pool);
        return true;
    }();
    (void)once;
    return pool.load();
}

}  // namespace

void parallel_for(int64_t units, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& body) {
    const int64_t chunks = (units + chunk - 1) / chunk;
    if (threads > chunks) threads = int(chunks);
    if (threads > 1 && the_pool()->run(units, chunk, threads, body)) return;
    body(0, units);
}

}  // namespace torchassay
