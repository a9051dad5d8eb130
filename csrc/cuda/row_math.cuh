// The operations of row_stats.h on one float, and the exp of the inner loops.
//
// The finish of a row is built from +, -, *, /, fused and square_root alone, all correctly rounded: it gives the same
// bits on every device and on the host. Only the sums use the exp2 unit.
#pragma once
#include "simt.cuh"

#ifdef __CUDACC__
#define TORCHASSAY_DEVICE __device__ __forceinline__
#else
#define TORCHASSAY_DEVICE inline
#endif

namespace torchassay {

using simt::as_bits;
using simt::as_float;
using simt::fused;
using simt::larger;
using simt::larger_or_nan;
using simt::smaller;
using simt::smaller_or_nan;
using simt::square_root;

#define TORCHASSAY_INFINITY simt::as_float(0x7f800000u)
constexpr float kLog2E = 1.44269504f, kLog2ELow = 1.92596299e-8f, kLn2 = 0.693147181f;
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // the sum is ln 2, the high part exact times n

TORCHASSAY_DEVICE float select(bool condition, float yes, float no) { return condition ? yes : no; }

// For d <= 0: d, at least -104, and e^d. e^-104 is 0 in float32, so a class at -inf adds exactly 0 and no 0 * inf
// arises. The rounding of d log2 e costs up to |d| 2^-24; kMend takes it back.
template <bool kMend>
TORCHASSAY_DEVICE float exp_of(float& d) {
    d = larger_or_nan(d, -104.0f);
    const float h = d * kLog2E, e = simt::exp2_fast(h);
    return kMend ? fused(e, fused(h, -kLn2, d), e) : e;
}

// What log2 e is multiplied by in an exponent under a temperature, and where its clamp lies.
struct Scale {
    float log2e, low;  // log2 e / temperature in two parts
    float lowest;      // -104 temperature
};
struct Unscaled {};

template <bool kMend>
TORCHASSAY_DEVICE float exp_of(float& d, Unscaled) {
    return exp_of<kMend>(d);
}

// e^(d / temperature) and d, at least -104 temperatures.
template <bool kMend>
TORCHASSAY_DEVICE float exp_of(float& d, const Scale& scale) {
    d = larger_or_nan(d, scale.lowest);
    const float h = d * scale.log2e, e = simt::exp2_fast(h);
    return kMend ? fused(e, fused(d, scale.low, fused(d, scale.log2e, -h)) * kLn2, e) : e;
}

// a b - product, where product is a b rounded.
TORCHASSAY_DEVICE float lost_in_product(float a, float b, float product) { return fused(a, b, -product); }

struct Reduced {
    float f;      // x - n ln 2, in [-ln 2 / 2, ln 2 / 2]
    float scale;  // 2^n, exactly 0 from x = -88 down
};

TORCHASSAY_DEVICE Reduced reduce_exponent(float x) {
    constexpr float biased = 12582912.0f + 127;  // adding 1.5 * 2^23 rounds to an integer, which stands in the low bits
    x = larger_or_nan(x, -88.0f);
    const float shifted = fused(x, kLog2E, biased), n = shifted - biased;
    return {fused(n, -kLn2Low, fused(n, -kLn2High, x)), as_float(as_bits(shifted) << 23)};
}

// (e^f - 1) / f by Taylor's series
TORCHASSAY_DEVICE float exp_series(float f) {
    float q = 1.0f / 5040;
    q = fused(q, f, 1.0f / 720);
    q = fused(q, f, 1.0f / 120);
    q = fused(q, f, 1.0f / 24);
    q = fused(q, f, 1.0f / 6);
    q = fused(q, f, 0.5f);
    return fused(q, f, 1.0f);
}

TORCHASSAY_DEVICE float exp_nonpositive(float x) {
    const Reduced a = reduce_exponent(x);
    return fused(a.f, exp_series(a.f), 1.0f) * a.scale;
}

TORCHASSAY_DEVICE float expm1_nonpositive(float x) {
    const Reduced a = reduce_exponent(x);
    return fused(a.scale, a.f * exp_series(a.f), a.scale - 1.0f);
}

// log(1 + r) for r >= 0; c is 1 / (1 + r), which the caller has.
TORCHASSAY_DEVICE float log1p_nonnegative(float r, float c) {
    const float w = r + 1.0f, back = w - 1.0f;
    const float lost = ((1.0f - (w - back)) + (r - back)) * c;  // what rounding 1 + r lost, as part of the logarithm
    constexpr uint32_t one = 0x3f800000u, sqrt_half = 0x3f3504f3u;
    const uint32_t shifted = as_bits(w) + (one - sqrt_half);  // w = 2^n f with f in [sqrt 1/2, sqrt 2)
    const float n = float(int32_t(shifted >> 23) - 127), f = as_float((shifted & 0x7fffffu) + sqrt_half);
    const float s = (f - 1.0f) / (f + 1.0f), s2 = s * s;
    float series = 1.0f / 11;
    series = fused(series, s2, 1.0f / 9);
    series = fused(series, s2, 1.0f / 7);
    series = fused(series, s2, 1.0f / 5);
    series = fused(series, s2, 1.0f / 3);
    series = fused(series, s2, 1.0f);
    const float low = fused(n, kLn2Low, lost);
    const float value = fused(n, kLn2High, fused(s + s, series, low));
    return r - r == 0.0f ? value : r;  // NaN and inf pass; the integer arithmetic above does not see them
}

}  // namespace torchassay

#include "../row_stats.h"
