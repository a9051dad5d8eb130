// What a kernel may use of the machine: where its thread stands, barriers, shuffles, shared memory, wide loads and the
// few instructions that C++ has no name for. The device's are here. The tests' host shim has the same names
// (tests/simt/simt.h): without a GPU it runs the kernels' very source, a block's threads as fibers, under sanitizers.
#pragma once
#include <cstdint>

#ifndef __CUDACC__
#include "simt.h"
#else

namespace torchassay::simt {

// All 32 lanes of a warp call sync_warp and shuffle_xor together, all threads of a block sync_block. Only
// sync_warp and sync_block order memory.
__device__ __forceinline__ int thread_index() { return threadIdx.x; }
__device__ __forceinline__ int64_t block_index() { return blockIdx.x; }
__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

// An array in shared memory, declared as `__shared__ Shared<float, 8> name`.
template <class T, int N>
class Shared {
public:
    __device__ __forceinline__ void write(int i, T value) { data_[i] = value; }
    __device__ __forceinline__ T read(int i) const { return data_[i]; }

private:
    T data_[N];
};

// ---- memory; `once`: passes the first cache by. Loads of what no kernel writes meanwhile, so the compiler may move
// and merge them.

struct alignas(16) Words {
    uint32_t word[4];
};
struct alignas(8) Pair {
    uint32_t word[2];
};

__device__ __forceinline__ Words load_16_once(const void* p) {
    Words v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(p));
    return v;
}
__device__ __forceinline__ Words load_16(const void* p) {
    Words v;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(p));
    return v;
}
__device__ __forceinline__ Pair load_8(const void* p) {
    Pair v;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.word[0]), "=r"(v.word[1]) : "l"(p));
    return v;
}
// The same pointer, but computed here and once: the compiler would rather form every address of a span anew.
template <class T>
__device__ __forceinline__ const T* computed(const T* p) {
    asm("" : "+l"(p));
    return p;
}
template <class T>
__device__ __forceinline__ T load(const T* p) {
    return __ldg(p);
}
// Of what a kernel before this one wrote.
__device__ __forceinline__ Words load_16_written(const void* p) { return *static_cast<const Words*>(p); }
__device__ __forceinline__ void store_16(void* p, const Words& v) { *static_cast<Words*>(p) = v; }

// ---- arithmetic

__device__ __forceinline__ float as_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t as_bits(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ float square_root(float x) { return __fsqrt_rn(x); }
__device__ __forceinline__ uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }

// 2^x with 2 ulp of error; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x with 1 ulp of error, for normal numbers whose inverse is normal.
__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// `larger` and `smaller` pass over a NaN, `*_or_nan` let it through.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ float smaller(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ float larger_or_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
__device__ __forceinline__ float smaller_or_nan(float a, float b) {
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// Two bfloat16 or two float16 in a word.
#define TORCHASSAY_PACKED(name, instruction)                           \
    __device__ __forceinline__ uint32_t name(uint32_t a, uint32_t b) { \
        uint32_t y;                                                    \
        asm(instruction " %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));    \
        return y;                                                      \
    }
TORCHASSAY_PACKED(larger_bf16x2, "max.bf16x2")
TORCHASSAY_PACKED(smaller_bf16x2, "min.bf16x2")
TORCHASSAY_PACKED(smaller_or_nan_bf16x2, "min.NaN.bf16x2")
TORCHASSAY_PACKED(larger_f16x2, "max.f16x2")
TORCHASSAY_PACKED(smaller_f16x2, "min.f16x2")
TORCHASSAY_PACKED(smaller_or_nan_f16x2, "min.NaN.f16x2")
#undef TORCHASSAY_PACKED

// The low 32 bits of (high : low) >> bits, bits < 32.
__device__ __forceinline__ uint32_t funnel_right(uint32_t low, uint32_t high, int bits) {
    return __funnelshift_r(low, high, bits);
}

__device__ __forceinline__ float widen_f16(uint16_t bits) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
}
// To nearest, ties to even.
__device__ __forceinline__ uint32_t narrow_bf16x2(float low, float high) {
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
__device__ __forceinline__ uint32_t narrow_f16x2(float low, float high) {
    uint32_t y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

}  // namespace torchassay::simt
#endif
