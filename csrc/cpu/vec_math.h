// exp, expm1, log1p and log on vectors of float or double, where the kernels need them: e^x and e^x - 1 for x <= 0,
// log(1 + r) for r >= 0, log w for w >= 0.
#pragma once
#include "vec.h"

namespace torchassay {
namespace {

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
template <int K, class V>
TORCHASSAY_INLINE void exp_series(const V (&f)[K], V (&q)[K]) {
    using T = Element<V>;
    T coefficient[Simd<T>::kExpTerms];
    T factorial = 1;
    for (int i = 0; i < Simd<T>::kExpTerms; ++i) factorial *= T(i + 1), coefficient[i] = T(1) / factorial;
    for (int k = 0; k < K; ++k) q[k] = splat<V>(coefficient[Simd<T>::kExpTerms - 1]);
    for (int i = Simd<T>::kExpTerms - 2; i >= 0; --i)
        for (int k = 0; k < K; ++k) q[k] = fused(q[k], f[k], splat<V>(coefficient[i]));
}
template <class V>
TORCHASSAY_INLINE V exp_series(V f) {
    const V one[1] = {f};
    V q[1];
    exp_series(one, q);
    return q[0];
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

// w = 2^n f with f in [sqrt 1/2, sqrt 2), for finite w >= 0; finite also for 0.
template <class V>
struct Split {
    V f, n;
};
template <class V>
TORCHASSAY_INLINE Split<V> split_exponent(V w) {
    using S = Simd<Element<V>>;
    using I = typename S::I;
    const typename S::Int one_bits = typename S::Int(S::kBias) << S::kMantissa;
    const I shifted = I(typename S::U(w) + (one_bits - S::kSqrtHalf));  // unsigned: a NaN would overflow
    const I exponent = (shifted >> S::kMantissa) - S::kBias;
    const I mantissa = (shifted & ((typename S::Int(1) << S::kMantissa) - 1)) + S::kSqrtHalf;
    return {V(mantissa), __builtin_convertvector(exponent, V)};
}

// log(w) + rest, for a small rest that w has no room for. Finite for w = 0, so w log w is 0 there.
template <class V>
TORCHASSAY_INLINE V log_nonnegative(V w, V rest = V{}) {
    using T = Element<V>;
    using S = Simd<T>;
    const Split<V> split = split_exponent(w);
    const V s = (split.f - 1) / (split.f + 1), s2 = s * s;
    V series = splat<V>(T(1) / T(2 * S::kLogTerms + 1));
    for (int i = S::kLogTerms - 1; i >= 0; --i) series = fused(series, s2, splat<V>(T(1) / T(2 * i + 1)));
    const V low = fused(split.n, splat<V>(S::kLn2Low), rest);
    return fused(split.n, splat<V>(S::kLn2High), fused(s + s, series, low));
}

// log(1 + r); c is 1 / (1 + r), which the caller has.
template <class V>
TORCHASSAY_INLINE V log1p_nonnegative(V r, V c) {
    const V w = r + 1;
    const V back = w - 1;
    const V lost = ((splat<V>(1) - (w - back)) + (r - back)) * c;  // what rounding 1 + r lost, as part of the logarithm
    return select(r - r == 0, log_nonnegative(w, lost), r);        // NaN passes; the split does not see it
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

// a b - product, where product is a b rounded.
template <class V>
TORCHASSAY_INLINE V lost_in_product(V a, V b, V product) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return fused(a, b, -product);
#else
    // halves whose products are exact (Dekker 1971)
    constexpr auto splitter = Element<V>(sizeof(Element<V>) == 4 ? 4097 : 134217729);
    const V x = a * splitter, y = b * splitter;
    const V a_high = x - (x - a), a_low = a - a_high, b_high = y - (y - b), b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

// One double, for the merges and the finish of long rows.
TORCHASSAY_INLINE double exp_nonpositive(double x) { return std::exp(x); }
TORCHASSAY_INLINE double lost_in_product(double a, double b, double product) { return std::fma(a, b, -product); }
TORCHASSAY_INLINE double log1p_nonnegative(double r, double) { return std::log1p(r); }
TORCHASSAY_INLINE double select(bool condition, double yes, double no) { return condition ? yes : no; }

}  // namespace
}  // namespace torchassay
