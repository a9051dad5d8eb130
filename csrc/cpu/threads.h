// Loops over rows on several threads.
#pragma once
#include <cstdint>
#include <functional>

namespace torchassay {

// Calls body(begin, end) over [0, units) in chunks of `chunk`, on up to `threads` threads, the caller among them.
// Which thread takes which chunk is open; so a body's result must not depend on it. Safe to call from several threads
// and in a forked child.
void parallel_for(int64_t units, int64_t chunk, int threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace torchassay
