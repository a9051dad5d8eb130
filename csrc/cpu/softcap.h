// Capped logits: v = softcap tanh(x / softcap) and its slope 1 - tanh^2, both to a few units in the last place. An
// infinity stays what it is: a masked class is masked, also the padding of a row.
#pragma once
#include "vec_math.h"

namespace torchassay {
namespace {

// tanh(y) = -E / (2 + E) and 1 - tanh = 2 e^(-2 y) / (2 + E) with E = e^(-2 y) - 1: nothing cancels, y small or large.
template <class T>
class Softcap {
    using S = Simd<T>;
    using V = typename S::V;
    using I = typename S::I;

public:
    TORCHASSAY_INLINE explicit Softcap(double height) : height_(splat<V>(T(height))) {
        const double rate = -2 / height, largest = sizeof(T) == 4 ? 3e38 : 1e308;
        const double furthest = (sizeof(T) == 4 ? 44 : 354.6) * height;  // e^(-2 y) is exactly 0 there: kLowest
        limit_ = splat<V>(T(furthest < largest ? furthest : largest));
        high_ = splat<V>(T(rate)), low_ = splat<V>(T(rate - double(T(rate))));
    }

    // Of K vectors, step by step over all of them: see exp_fast.
    template <int K>
    TORCHASSAY_INLINE void operator()(const V (&x)[K], V (&v)[K], V (&slope)[K]) const {
        const I sign = I{} + (typename S::Int(1) << (8 * sizeof(T) - 1));
        const V biased = splat<V>(S::kMagic + S::kBias);
        V y[K], n[K], scale[K], part[K];
        for (int i = 0; i < K; ++i) y[i] = min_or_second(limit_, V(I(x[i]) & ~sign));
        for (int i = 0; i < K; ++i) y[i] = fused(y[i], high_, y[i] * low_);
        for (int i = 0; i < K; ++i) n[i] = fused(y[i], splat<V>(T(1.4426950408889634)), biased);
        for (int i = 0; i < K; ++i) scale[i] = V(I(n[i]) << S::kMantissa), n[i] -= biased;
        for (int i = 0; i < K; ++i) y[i] = fused(n[i], splat<V>(-S::kLn2High), y[i]);
        for (int i = 0; i < K; ++i) y[i] = fused(n[i], splat<V>(-S::kLn2Low), y[i]);
        exp_series(y, part);
        for (int i = 0; i < K; ++i) part[i] = scale[i] * (y[i] * part[i]);
        for (int i = 0; i < K; ++i) {
            const V e = scale[i] + part[i], less = part[i] + (scale[i] - 1);  // e^(-2 y) and e^(-2 y) - 1
            const V tanh = -less / (2 + less);
            v[i] = V(I(x[i]) & ~sign) == INFINITY ? x[i] : V(I(height_ * tanh) | (I(x[i]) & sign));
            slope[i] = e * (1 + tanh) * (1 + tanh);
        }
    }

private:
    V height_, limit_, high_, low_;
};

}  // namespace
}  // namespace torchassay
