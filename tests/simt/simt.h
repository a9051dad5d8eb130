// The host's side of simt.cuh: runs the kernels' very source without a GPU. Compile with -fsanitize=address,undefined.
//
//     simt::Launch{descending}(kernel<float>, blocks, threads, arguments...);
//
// Blocks run one after the other, and a block's threads are fibers: one runs until it stands at a collective, and goes
// on once every lane of its warp (every thread of its block, at sync_block) stands at the same. Threads and blocks are
// taken in ascending or in descending order; code that is right gives the same bits in both. On a mistake the program
// prints one line and ends with status 3, or as the sanitizers end it.
#pragma once
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#include "arithmetic.h"  // declares fail too

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

namespace torchassay::simt {

namespace host {

constexpr int kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStack = 128 << 10;

// A place in the kernel's source; as the default of an argument, the place of the call.
struct Site {
    const char* file;
    int line;
};
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// ---- fibers

struct Fiber {
    void* resume[5];
    const void* stack;
    size_t size;
    bool can_resume;
    const char* stands_at;  // one of the names below
    Site site;
};
constexpr const char kEnd[] = "its end", kSyncBlock[] = "sync_block", kSyncWarp[] = "sync_warp";
constexpr const char kShuffleXor[] = "shuffle_xor";

struct Warp {
    uint64_t given[kWarp], seen[kWarp];  // by the lanes: for the next collective, in the last one
    uint64_t epoch;                      // counts its sync_warp
};

struct Machine {
    std::function<void()> body;  // the kernel with its arguments
    int64_t block;
    int thread = -1;        // the one that runs
    uint64_t epoch, began;  // counts sync_block over all launches; its value when the block began
    Fiber threads[kMaxThreads], scheduler;
    Warp warps[kMaxThreads / kWarp];
};
inline Machine machine;

void run_thread();

// swapcontext would cost two system calls, and AddressSanitizer drops the redzones of the stack that it leads to. So
// contexts only start a fiber. The two functions have no redzones, because their frames are left for another stack.
[[noreturn]] __attribute__((noinline, no_sanitize_address)) inline void start(Fiber& fiber) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = const_cast<void*>(fiber.stack);
    context.uc_stack.ss_size = fiber.size;
    makecontext(&context, run_thread, 0);
    setcontext(&context);
    std::abort();
}
__attribute__((noinline, no_sanitize_address)) inline void jump(Fiber& from, Fiber& to) {
    from.can_resume = true;
    if (__builtin_setjmp(from.resume)) return;
    if (!to.can_resume) start(to);
    __builtin_longjmp(to.resume, 1);
}

inline void change_fiber(Fiber& from, Fiber& to) {
    void* fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.size);
    jump(from, to);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

// Leaves the running thread at a collective; what all lanes of its warp gave to it.
inline const uint64_t* stop_at(const char* name, Site site, uint64_t given = 0) {
    const int i = machine.thread;
    machine.threads[i].stands_at = name;
    machine.threads[i].site = site;
    machine.warps[i / kWarp].given[i % kWarp] = given;
    change_fiber(machine.threads[i], machine.scheduler);
    return machine.warps[i / kWarp].seen;
}

// What a fiber runs: one thread after the other of those with its index.
inline void run_thread() {
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler.stack, &machine.scheduler.size);
    for (;; stop_at(kEnd, {"kernel", 0})) machine.body();
}

inline void resume(int i) {
    Fiber& fiber = machine.threads[i];
    if (!fiber.stack) fiber.stack = new char[fiber.size = kStack];
    machine.thread = i;
    change_fiber(machine.scheduler, fiber);
    machine.thread = -1;
}

// Fails unless both stand at the same.
inline void compare(int i, int j) {
    const Fiber &a = machine.threads[i], &b = machine.threads[j];
    if (a.stands_at != b.stands_at || a.site.line != b.site.line)
        fail("block %lld: divergent threads: %d stands at %s (%s:%d), %d at %s (%s:%d)", (long long)machine.block, i,
             a.stands_at, a.site.file, a.site.line, j, b.stands_at, b.site.file, b.site.line);
}

// Up to where the whole block must meet.
inline void run_warp(int first, bool descending) {
    Warp& warp = machine.warps[first / kWarp];
    const auto& stands_at = machine.threads[first].stands_at;
    do {
        for (int i = 0; i < kWarp; ++i) resume(first + (descending ? kWarp - 1 - i : i));
        for (int i = 1; i < kWarp; ++i) compare(first, first + i);
        std::memcpy(warp.seen, warp.given, sizeof(warp.seen));
        warp.epoch += stands_at == kSyncWarp;
    } while (stands_at != kSyncBlock && stands_at != kEnd);
}

inline void run_block(int threads, bool descending) {
    machine.began = ++machine.epoch;
    do {
        for (int i = 0; i < threads; i += kWarp) run_warp(descending ? threads - kWarp - i : i, descending);
        for (int i = kWarp; i < threads; i += kWarp) compare(0, i);
        ++machine.epoch;
    } while (machine.threads[0].stands_at != kEnd);
}

// ---- what the contract's functions are made of

struct Access {
    int thread;
    uint64_t epoch, warp_epoch;  // 0: there was none
    Site site;

    static Access now(Site site) {
        return {machine.thread, machine.epoch, machine.warps[machine.thread / kWarp].epoch, site};
    }
    int warp() const { return thread / kWarp; }
    // A barrier lies between, or one thread did both.
    bool ordered_before(const Access& next) const {
        return thread == next.thread || epoch < next.epoch || (warp() == next.warp() && warp_epoch < next.warp_epoch);
    }
    void expect_before(const Access& next, const char* verb) const {
        if (!ordered_before(next))
            fail("race on shared memory (%s:%d), which thread %d has %s (%s:%d)", next.site.file, next.site.line,
                 thread, verb, site.file, site.line);
    }
};

// The accesses to one element that a later one could be in a race with.
struct History {
    Access last_write, reads[2];

    void write(const Access& now) {
        last_write.expect_before(now, "written");
        for (const Access& earlier : reads) earlier.expect_before(now, "read");
        last_write = now;  // what is ordered after this write is ordered after the reads before it
    }
    void read(const Access& now) {
        if (last_write.epoch < machine.began)
            fail("read of shared memory before a write (%s:%d)", now.site.file, now.site.line);
        last_write.expect_before(now, "written");
        // Two unordered reads stand for all: be they of two warps or of two lanes, no write but one after both is safe.
        if (reads[0].ordered_before(now))
            reads[0] = now;
        else if (reads[1].ordered_before(now) || reads[1].warp() == reads[0].warp())
            reads[1] = now;
    }
};

inline void expect_aligned(const void* p, size_t bytes, Site site) {
    if (reinterpret_cast<uintptr_t>(p) % bytes)
        fail("misaligned access of %zu bytes at %p (%s:%d)", bytes, p, site.file, site.line);
}
template <class T>
T load_as(const void* p, Site site) {
    expect_aligned(p, sizeof(T), site);
    T v;
    std::memcpy(&v, p, sizeof(T));
    return v;
}

}  // namespace host

inline void fail(const char* format, ...) {
    if (host::machine.thread >= 0)
        std::fprintf(stderr, "block %lld, thread %d: ", (long long)host::machine.block, host::machine.thread);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    std::_Exit(3);
}

struct Launch {
    bool descending;

    template <class... P, class... A>
    void operator()(void (*kernel)(P...), int64_t blocks, int threads, A&&... arguments) const {
        if (blocks < 1 || blocks > INT32_MAX) fail("a launch of %lld blocks", (long long)blocks);
        if (threads < 1 || threads > host::kMaxThreads || threads % host::kWarp)
            fail("a launch of %d threads a block", threads);
        host::machine.body = [kernel, given = std::tuple<P...>(std::forward<A>(arguments)...)] {
            std::apply(kernel, given);
        };
        for (int64_t i = 0; i < blocks; ++i) {
            host::machine.block = descending ? blocks - 1 - i : i;
            host::run_block(threads, descending);
        }
    }
};

inline int thread_index() { return host::machine.thread; }
inline int64_t block_index() { return host::machine.block; }
inline void sync_block(host::Site site = host::here()) { host::stop_at(host::kSyncBlock, site); }
inline void sync_warp(host::Site site = host::here()) { host::stop_at(host::kSyncWarp, site); }
template <class T>
T shuffle_xor(T value, int mask, host::Site site = host::here()) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
    if (mask < 0 || mask >= host::kWarp) fail("shuffle_xor by %d (%s:%d)", mask, site.file, site.line);
    uint64_t given = 0;
    std::memcpy(&given, &value, sizeof(T));
    const uint64_t* seen = host::stop_at(host::kShuffleXor, site, given);
    std::memcpy(&value, seen + (thread_index() % host::kWarp ^ mask), sizeof(T));
    return value;
}

// Fails on two accesses, one of them a write, by threads that no barrier orders, and on what was never written.
template <class T, int N>
class Shared {
public:
    void write(int i, T value, host::Site site = host::here()) {
        history(i, site).write(host::Access::now(site));
        data_[i] = value;
    }
    T read(int i, host::Site site = host::here()) const {
        history(i, site).read(host::Access::now(site));
        return data_[i];
    }

private:
    host::History& history(int i, host::Site site) const {
        if (i < 0 || i >= N) fail("index %d of %d in shared memory (%s:%d)", i, N, site.file, site.line);
        return history_[i];
    }

    T data_[N];
    mutable host::History history_[N];
};

// ---- memory

struct alignas(16) Words {
    uint32_t word[4];
};
struct alignas(8) Pair {
    uint32_t word[2];
};

template <class T>
const T* computed(const T* p) {
    return p;
}
inline Words load_16_once(const void* p, host::Site site = host::here()) { return host::load_as<Words>(p, site); }
inline Words load_16(const void* p, host::Site site = host::here()) { return host::load_as<Words>(p, site); }
inline Words load_16_written(const void* p, host::Site site = host::here()) { return host::load_as<Words>(p, site); }
inline Pair load_8(const void* p, host::Site site = host::here()) { return host::load_as<Pair>(p, site); }
template <class T>
T load(const T* p, host::Site site = host::here()) {
    static_assert(std::is_arithmetic_v<T>);
    return host::load_as<T>(p, site);
}
inline void store_16(void* p, const Words& v, host::Site site = host::here()) {
    host::expect_aligned(p, 16, site);
    std::memcpy(p, &v, 16);
}

}  // namespace torchassay::simt
