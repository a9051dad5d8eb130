// Launches on one device and stream, each checked. For nvcc only.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "../api.h"

namespace torchassay {

inline void check(cudaError_t error, const char* doing) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("torchassay: ") + doing + ": " + cudaGetErrorString(error));
}

inline int multiprocessors(int device) {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
    return count;
}

// The caller has made the device the current one. Here it is only made known to this module's own CUDA runtime, which
// is linked statically: that one's idea of the current device would be its own, and going back to it a mistake.
class Launch {
public:
    explicit Launch(const cuda::Place& place) : stream_(static_cast<cudaStream_t>(place.stream)) {
        check(cudaSetDevice(place.device), "choosing the device");
    }

    template <class... P, class... A>
    void operator()(void (*kernel)(P...), int64_t blocks, int threads, A&&... arguments) const {
        if (blocks > 0x7fffffff) throw std::runtime_error("torchassay: too many rows for one launch");
        kernel<<<unsigned(blocks), unsigned(threads), 0, stream_>>>(std::forward<A>(arguments)...);
        check(cudaGetLastError(), "launching a kernel");
    }

private:
    cudaStream_t stream_;
};

}  // namespace torchassay
