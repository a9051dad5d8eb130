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

// Makes a device the current one for as long as it lives.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "the current device");
        if (before_ == device)
            before_ = -1;
        else
            check(cudaSetDevice(device), "choosing the device");
    }
    ~OnDevice() {
        if (before_ >= 0) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int before_ = -1;
};

class Launch {
public:
    explicit Launch(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

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
