// What the programs that run kernels under the host shim are asked: numbers and bytes on standard input.
#pragma once
#include <cstdio>

#include "simt.h"

namespace torchassay {

inline void read_bytes(void* into, int64_t bytes) {
    if (int64_t(std::fread(into, 1, bytes, stdin)) != bytes) simt::fail("the request is too short");
}

inline int64_t number() {
    int64_t value;
    read_bytes(&value, sizeof(value));
    return value;
}

}  // namespace torchassay
