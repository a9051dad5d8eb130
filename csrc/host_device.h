// What a function is marked with that C++ and CUDA both compile, always inlined.
#pragma once

#ifdef __CUDACC__
#define TORCHASSAY_HD __host__ __device__ __forceinline__
#else
#define TORCHASSAY_HD inline __attribute__((always_inline))
#endif
