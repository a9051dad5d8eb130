// A small pool of threads for loops over rows.
#pragma once
#include <cstdint>
#include <functional>

namespace torchassay {

// Calls body(begin, end) over [0, units) in chunks of `chunk`, on up to `threads` threads, the caller among them.
// Which thread takes which chunk is open; so a body's result must not depend on it. Safe to call from several threads
// (one of them gets the pool, the others run alone) and in a forked child (which starts a pool of its own).
void parallel_for(int64_t units, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace torchassay
