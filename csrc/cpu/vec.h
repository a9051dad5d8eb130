// Vectors of the widest registers this file is compiled for, and the storage types of one number.
//
// Every kernel file is compiled once for each instruction set (see kernels.h), so these are plain compiler vectors with
// an intrinsic only where the language has no word: fused multiply-add, NaN-passing max, square root.
// Everything is in an unnamed namespace: code for one instruction set must never be linked into another's.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define TORCHASSAY_INLINE inline __attribute__((always_inline))
#define TORCHASSAY_INLINE_LAMBDA __attribute__((always_inline))

namespace torchassay {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

using F32 = float __attribute__((vector_size(kBytes)));
using F64 = double __attribute__((vector_size(kBytes)));
using I32 = int32_t __attribute__((vector_size(kBytes)));
using I64 = int64_t __attribute__((vector_size(kBytes)));
using U32 = uint32_t __attribute__((vector_size(kBytes)));
using U64 = uint64_t __attribute__((vector_size(kBytes)));

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// ---- one number of any storage type

TORCHASSAY_INLINE float widen(float x) { return x; }
TORCHASSAY_INLINE double widen(double x) { return x; }
TORCHASSAY_INLINE float widen(Bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
TORCHASSAY_INLINE float widen(Float16 x) {
    // exponent and mantissa moved into place, rebiased by a multiply, which also handles subnormals
    const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    float value;
    std::memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits |= (magnitude >= 0x0f800000 ? 0x7f800000 : 0) | sign;
    std::memcpy(&value, &bits, 4);
    return value;
}

TORCHASSAY_INLINE void narrow(float x, float* p) { *p = x; }
TORCHASSAY_INLINE void narrow(double x, double* p) { *p = x; }
TORCHASSAY_INLINE void narrow(float x, Bfloat16* p) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    p->bits = uint16_t(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}
TORCHASSAY_INLINE void narrow(float x, Float16* p) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    uint32_t half;
    if (bits > 0x7f800000) {
        half = 0x7e00;
    } else if (bits >= 0x477ff000) {  // rounds to 65536 or more
        half = 0x7c00;
    } else if (bits < 0x38800000) {  // subnormal: adding 0.5 lets the hardware round at the right place
        float value;
        std::memcpy(&value, &bits, 4);
        value += 0.5f;
        std::memcpy(&half, &value, 4);
        half -= 0x3f000000;
    } else {
        half = (bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13;
    }
    p->bits = uint16_t(half | sign);
}

// ---- what differs between float and double

template <class T>
struct Simd;
template <>
struct Simd<float> {
    using V = F32;
    using I = I32;
    using U = U32;
    using Int = int32_t;
    static constexpr int kLanes = kBytes / 4, kMantissa = 23, kBias = 127;
    static constexpr int kExpTerms = 7, kLogTerms = 5;
    static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float kLowest = -88.0f;      // e^x with x below has the exponent field 0: exactly 0
    static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    static constexpr Int kSqrtHalf = 0x3f3504f3;
};
template <>
struct Simd<double> {
    using V = F64;
    using I = I64;
    using U = U64;
    using Int = int64_t;
    static constexpr int kLanes = kBytes / 8, kMantissa = 52, kBias = 1023;
    static constexpr int kExpTerms = 13, kLogTerms = 12;
    static constexpr double kMagic = 6755399441055744.0;
    static constexpr double kLowest = -709.2;
    static constexpr double kLn2High = 0.693145751953125, kLn2Low = 1.42860682030941723212e-6;
    static constexpr Int kSqrtHalf = 0x3fe6a09e667f3bcd;
};
template <class V>
using Element = std::remove_reference_t<decltype(V{}[0])>;

template <class V>
TORCHASSAY_INLINE V splat(Element<V> x) {
    return V{} + x;
}

// ---- operations with an instruction of their own

template <class M, class V>
TORCHASSAY_INLINE V select(M condition, V yes, V no) {
    return condition ? yes : no;
}

#if defined(__AVX512F__)
TORCHASSAY_INLINE F32 fused(F32 a, F32 b, F32 c) { return F32(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c))); }
TORCHASSAY_INLINE F64 fused(F64 a, F64 b, F64 c) { return F64(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c))); }
// the second operand where either is NaN
TORCHASSAY_INLINE F32 max_or_second(F32 a, F32 b) { return F32(_mm512_max_ps(__m512(a), __m512(b))); }
TORCHASSAY_INLINE F64 max_or_second(F64 a, F64 b) { return F64(_mm512_max_pd(__m512d(a), __m512d(b))); }
TORCHASSAY_INLINE F32 min_or_second(F32 a, F32 b) { return F32(_mm512_min_ps(__m512(a), __m512(b))); }
TORCHASSAY_INLINE F64 min_or_second(F64 a, F64 b) { return F64(_mm512_min_pd(__m512d(a), __m512d(b))); }
TORCHASSAY_INLINE F32 square_root(F32 x) { return F32(_mm512_sqrt_ps(__m512(x))); }
TORCHASSAY_INLINE F64 square_root(F64 x) { return F64(_mm512_sqrt_pd(__m512d(x))); }
TORCHASSAY_INLINE float max_lane(F32 x) { return _mm512_reduce_max_ps(__m512(x)); }
TORCHASSAY_INLINE double max_lane(F64 x) { return _mm512_reduce_max_pd(__m512d(x)); }
TORCHASSAY_INLINE double sum_lanes(F64 x) { return _mm512_reduce_add_pd(__m512d(x)); }
TORCHASSAY_INLINE F64 widen_low(F32 x) { return F64(_mm512_cvtps_pd(_mm512_castps512_ps256(__m512(x)))); }
TORCHASSAY_INLINE F64 widen_high(F32 x) { return F64(_mm512_cvtps_pd(_mm512_extractf32x8_ps(__m512(x), 1))); }
#else
#if defined(__AVX2__)
TORCHASSAY_INLINE F32 fused(F32 a, F32 b, F32 c) { return F32(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c))); }
TORCHASSAY_INLINE F64 fused(F64 a, F64 b, F64 c) { return F64(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c))); }
TORCHASSAY_INLINE F32 max_or_second(F32 a, F32 b) { return F32(_mm256_max_ps(__m256(a), __m256(b))); }
TORCHASSAY_INLINE F64 max_or_second(F64 a, F64 b) { return F64(_mm256_max_pd(__m256d(a), __m256d(b))); }
TORCHASSAY_INLINE F32 min_or_second(F32 a, F32 b) { return F32(_mm256_min_ps(__m256(a), __m256(b))); }
TORCHASSAY_INLINE F64 min_or_second(F64 a, F64 b) { return F64(_mm256_min_pd(__m256d(a), __m256d(b))); }
TORCHASSAY_INLINE F32 square_root(F32 x) { return F32(_mm256_sqrt_ps(__m256(x))); }
TORCHASSAY_INLINE F64 square_root(F64 x) { return F64(_mm256_sqrt_pd(__m256d(x))); }
TORCHASSAY_INLINE F64 widen_low(F32 x) { return F64(_mm256_cvtps_pd(_mm256_castps256_ps128(__m256(x)))); }
TORCHASSAY_INLINE F64 widen_high(F32 x) { return F64(_mm256_cvtps_pd(_mm256_extractf128_ps(__m256(x), 1))); }
#else
#if defined(__ARM_FEATURE_FMA)
TORCHASSAY_INLINE F32 fused(F32 a, F32 b, F32 c) {
    return F32(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
}
TORCHASSAY_INLINE F64 fused(F64 a, F64 b, F64 c) {
    return F64(vfmaq_f64(float64x2_t(c), float64x2_t(a), float64x2_t(b)));
}
#else
template <class V>
TORCHASSAY_INLINE V fused(V a, V b, V c) {
    return a * b + c;
}
#endif
template <class V>
TORCHASSAY_INLINE V max_or_second(V a, V b) {
    return a > b ? a : b;
}
template <class V>
TORCHASSAY_INLINE V min_or_second(V a, V b) {
    return a < b ? a : b;
}
template <class V>
TORCHASSAY_INLINE V square_root(V x) {
    for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = std::sqrt(x[i]);
    return x;
}
TORCHASSAY_INLINE F64 widen_low(F32 x) { return F64{x[0], x[1]}; }
TORCHASSAY_INLINE F64 widen_high(F32 x) { return F64{x[2], x[3]}; }
#endif
template <class V>
TORCHASSAY_INLINE Element<V> max_lane(V x) {
    constexpr int n = sizeof(V) / sizeof(x[0]);
    Element<V> a[n];
    std::memcpy(a, &x, sizeof(x));
    for (int width = n / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) a[i] = a[i] > a[i + width] ? a[i] : a[i + width];
    return a[0];
}
TORCHASSAY_INLINE double sum_lanes(F64 x) {
    constexpr int n = sizeof(F64) / 8;
    double a[n];
    std::memcpy(a, &x, sizeof(x));
    for (int width = n / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) a[i] += a[i + width];
    return a[0];
}
#endif

// The sum of the two halves of float lanes, as double.
template <class T>
TORCHASSAY_INLINE F64 widened(typename Simd<T>::V x) {
    if constexpr (sizeof(T) == 8)
        return x;
    else
        return widen_low(x) + widen_high(x);
}

template <class V>
TORCHASSAY_INLINE V absolute(V x) {
    return max_or_second(x, -x);
}

// One bit a lane, set where the condition holds.
template <class I>
TORCHASSAY_INLINE unsigned lane_mask(I condition) {
    constexpr bool wide = sizeof(condition[0]) == 8;
#if defined(__AVX512F__)
    return wide ? _mm512_movepi64_mask(__m512i(condition)) : _mm512_movepi32_mask(__m512i(condition));
#elif defined(__AVX2__)
    return wide ? _mm256_movemask_pd(__m256d(condition)) : _mm256_movemask_ps(__m256(condition));
#else
    unsigned mask = 0;
    for (unsigned i = 0; i < sizeof(I) / sizeof(condition[0]); ++i) mask |= unsigned(condition[i] != 0) << i;
    (void)wide;
    return mask;
#endif
}

}  // namespace

}  // namespace torchassay
