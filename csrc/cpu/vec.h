// Vectors of the widest registers this file is compiled for, and exp, log1p, expm1 on them.
//
// Every kernel file is compiled once for each instruction set (see kernels.h), so these are plain compiler vectors with
// an intrinsic only where the language has no word: fused multiply-add, NaN-passing max, square root, 16-bit loads.
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

// ---- loads and stores

template <class T, class In>
TORCHASSAY_INLINE typename Simd<T>::V load(const In* p) {
    typename Simd<T>::V v;
    if constexpr (sizeof(In) == sizeof(T)) {
        std::memcpy(&v, p, sizeof(v));
    } else {
#if defined(__AVX512F__)
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        if constexpr (std::is_same_v<In, Float16>)
            v = F32(_mm512_cvtph_ps(raw));
        else
            v = F32(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
#elif defined(__AVX2__)
        const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        if constexpr (std::is_same_v<In, Float16>)
            v = F32(_mm256_cvtph_ps(raw));
        else
            v = F32(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
#else
        for (int i = 0; i < Simd<float>::kLanes; ++i) v[i] = widen(p[i]);
#endif
    }
    return v;
}

template <class In>
TORCHASSAY_INLINE In minus_infinity() {
    if constexpr (std::is_same_v<In, Bfloat16>) {
        return Bfloat16{0xff80};
    } else if constexpr (std::is_same_v<In, Float16>) {
        return Float16{0xfc00};
    } else {
        return In(-INFINITY);
    }
}

// The first n < kLanes numbers at p, the other lanes -inf, which adds nothing to any sum.
template <class T, class In>
TORCHASSAY_INLINE typename Simd<T>::V load_tail(const In* p, int n) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<In, float>)
        return F32(_mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), __mmask16((1u << n) - 1), p));
#endif
    In padded[Simd<T>::kLanes];
    for (In& x : padded) x = minus_infinity<In>();
    std::memcpy(padded, p, n * sizeof(In));
    return load<T>(padded);
}

// Two vectors of neighbouring columns, in whatever order is cheapest; a column's place depends on the column alone.
template <class V>
struct Pair {
    V a, b;
};

template <class In>
constexpr bool kInterleaved = std::is_same_v<In, Bfloat16>;  // even columns in a, odd ones in b

TORCHASSAY_INLINE Pair<F32> split(I32 raw) {  // bfloat16 is the upper half of float32
    return {F32(raw << 16), F32(raw & int32_t(0xffff0000))};
}

template <class T, class In>
TORCHASSAY_INLINE Pair<typename Simd<T>::V> load_pair(const In* p) {
    if constexpr (kInterleaved<In>) {
        I32 raw;
        std::memcpy(&raw, p, sizeof(raw));
        return split(raw);
    } else {
        return {load<T>(p), load<T>(p + Simd<T>::kLanes)};
    }
}

// The first n < 2 kLanes numbers at p, -inf after them.
template <class T, class In>
TORCHASSAY_INLINE Pair<typename Simd<T>::V> load_pair_tail(const In* p, int n) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<In, float>) {
        const __m512 filled = _mm512_set1_ps(-INFINITY);
        const uint32_t mask = (uint32_t(1) << n) - 1;
        return {F32(_mm512_mask_loadu_ps(filled, __mmask16(mask), p)),
                F32(_mm512_mask_loadu_ps(filled, __mmask16(mask >> 16), p + 16))};
    } else if constexpr (kInterleaved<In>) {
        const __m512i filled = _mm512_set1_epi16(short(minus_infinity<In>().bits));
        return split(I32(_mm512_mask_loadu_epi16(filled, (uint32_t(1) << n) - 1, p)));
    }
#endif
    In padded[2 * Simd<T>::kLanes];
    for (In& x : padded) x = minus_infinity<In>();
    std::memcpy(padded, p, n * sizeof(In));
    return load_pair<T>(padded);
}

// Column of lane `lane` of the half-th vector of a pair, counted from the pair's first column; and back.
template <class T, class In>
TORCHASSAY_INLINE int column_in_pair(int half, int lane) {
    return kInterleaved<In> ? 2 * lane + half : half * Simd<T>::kLanes + lane;
}

template <class T, class Out>
TORCHASSAY_INLINE void store(Out* p, typename Simd<T>::V v) {
    if constexpr (sizeof(Out) == sizeof(T)) {
        std::memcpy(p, &v, sizeof(v));
    } else {
#if defined(__AVX512F__)
        __m256i raw;
        if constexpr (std::is_same_v<Out, Float16>) {
            raw = _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        } else {
            const I32 bits = I32(v);
            const I32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
            raw = _mm512_cvtepi32_epi16(__m512i(v != v ? splat<I32>(0x7fc0) : rounded));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), raw);
#else
        for (int i = 0; i < Simd<float>::kLanes; ++i) narrow(v[i], p + i);
#endif
    }
}

template <class T, class Out>
TORCHASSAY_INLINE void store_tail(Out* p, typename Simd<T>::V v, int n) {
    Out whole[Simd<T>::kLanes];
    store<T>(whole, v);
    std::memcpy(p, whole, n * sizeof(Out));
}

// ---- functions; x is a vector of float or double

template <class V>
struct Reduced {
    V f;      // x - n ln 2, in [-ln 2 / 2, ln 2 / 2]
    V scale;  // 2^n, exactly 0 for x at or below kLowest
};

// Below it e^x is exactly 0, also times x; NaN passes.
template <class V>
TORCHASSAY_INLINE V clamp_exponent(V x) {
    return max_or_second(splat<V>(Simd<Element<V>>::kLowest), x);
}

template <class V>
TORCHASSAY_INLINE Reduced<V> reduce(V x) {
    using S = Simd<Element<V>>;
    using I = typename S::I;
    x = clamp_exponent(x);
    const V biased = splat<V>(S::kMagic + S::kBias);
    const V shifted = fused(x, splat<V>(Element<V>(1.4426950408889634)), biased);
    const V n = shifted - biased;
    const V scale = V(I(shifted) << S::kMantissa);  // the low bits of `shifted` are n + bias
    return {fused(n, splat<V>(-S::kLn2Low), fused(n, splat<V>(-S::kLn2High), x)), scale};
}

// (e^f - 1) / f by Taylor's series, good to the last bit for |f| <= ln 2 / 2
template <class V>
TORCHASSAY_INLINE V exp_series(V f) {
    using T = Element<V>;
    T coefficient[Simd<T>::kExpTerms];
    T factorial = 1;
    for (int i = 0; i < Simd<T>::kExpTerms; ++i) factorial *= T(i + 1), coefficient[i] = T(1) / factorial;
    V q = splat<V>(coefficient[Simd<T>::kExpTerms - 1]);
    for (int i = Simd<T>::kExpTerms - 2; i >= 0; --i) q = fused(q, f, splat<V>(coefficient[i]));
    return q;
}

template <class V>
TORCHASSAY_INLINE V exp_nonpositive(V x) {
    const Reduced<V> a = reduce(x);
    return fused(a.f, exp_series(a.f), splat<V>(1)) * a.scale;
}

template <class V>
TORCHASSAY_INLINE V expm1_nonpositive(V x) {
    const Reduced<V> a = reduce(x);
    return fused(a.scale, a.f * exp_series(a.f), a.scale - 1);
}

// log(1 + r); c is 1 / (1 + r), which the caller has.
template <class V>
TORCHASSAY_INLINE V log1p_nonnegative(V r, V c) {
    using T = Element<V>;
    using S = Simd<T>;
    using I = typename S::I;
    const V w = r + 1;
    const V back = w - 1;
    const V lost = ((splat<V>(1) - (w - back)) + (r - back)) * c;  // what rounding 1 + r lost, as part of the logarithm
    // w = 2^n f with f in [sqrt 1/2, sqrt 2)
    const typename S::Int one_bits = typename S::Int(S::kBias) << S::kMantissa;
    const I shifted = I(w) + (one_bits - S::kSqrtHalf);
    const I exponent = (shifted >> S::kMantissa) - S::kBias;
    const I mantissa = (shifted & ((typename S::Int(1) << S::kMantissa) - 1)) + S::kSqrtHalf;
    const V f = V(mantissa), n = __builtin_convertvector(exponent, V);
    const V s = (f - 1) / (f + 1), s2 = s * s;
    V series = splat<V>(T(1) / T(2 * S::kLogTerms + 1));
    for (int i = S::kLogTerms - 1; i >= 0; --i) series = fused(series, s2, splat<V>(T(1) / T(2 * i + 1)));
    const V low = fused(n, splat<V>(S::kLn2Low), lost);
    const V value = fused(n, splat<V>(S::kLn2High), fused(s + s, series, low));
    return select(r - r == 0, value, r);  // NaN passes; the integer arithmetic above does not see it
}

// The exp of the inner loops, of K clamped vectors: one step of reduction, error 1e-7, e^0 exactly 1. Step by step over
// all K, because that is the order the processor gets: one chain after the other would fill its queues with waiting
// work.
template <int K>
TORCHASSAY_INLINE void exp_fast(const F32 (&x)[K], F32 (&e)[K]) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    // minimax of degree 5 on [-ln 2 / 2, ln 2 / 2], value 1 at 0
    constexpr float coefficient[] = {0.0418981761f, 0.166676387f, 0.499991477f, 0.999999702f, 1.0f};
    const F32 biased = splat<F32>(Simd<float>::kMagic + Simd<float>::kBias);
    F32 shifted[K], f[K];
    for (int i = 0; i < K; ++i) shifted[i] = fused(x[i], splat<F32>(1.44269504f), biased);
    for (int i = 0; i < K; ++i) f[i] = shifted[i] - biased;
    for (int i = 0; i < K; ++i) f[i] = fused(f[i], splat<F32>(-0.693147181f), x[i]);
    for (int i = 0; i < K; ++i) e[i] = fused(splat<F32>(0.00829027779f), f[i], splat<F32>(coefficient[0]));
    for (int q = 1; q < 5; ++q)
        for (int i = 0; i < K; ++i) e[i] = fused(e[i], f[i], splat<F32>(coefficient[q]));
    for (int i = 0; i < K; ++i) e[i] *= F32(I32(shifted[i]) << 23);
#else
    for (int i = 0; i < K; ++i) e[i] = exp_nonpositive(x[i]);  // unfused, one step of reduction is not enough
#endif
}
template <int K>
TORCHASSAY_INLINE void exp_fast(const F64 (&x)[K], F64 (&e)[K]) {
    for (int i = 0; i < K; ++i) e[i] = exp_nonpositive(x[i]);
}

// One double, for the few merges of long rows.
TORCHASSAY_INLINE double exp_nonpositive(double x) { return std::exp(x); }
TORCHASSAY_INLINE double select(bool condition, double yes, double no) { return condition ? yes : no; }

}  // namespace

}  // namespace torchassay
