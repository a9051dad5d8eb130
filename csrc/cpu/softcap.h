// Capped logits: v = softcap tanh(x / softcap) and its slope 1 - tanh^2, both to a few units in the last place.
#pragma once
#include "vec_math.h"

namespace torchassay {
namespace {

// tanh(y) = -E / (2 + E) and 1 - tanh = 2 e^(-2 y) / (2 + E) with E = e^(-2 y) - 1: nothing cancels, y small or large.
template <class T>
class Softcap {
    using V = typename Simd<T>::V;

public:
    struct Point {
        V v, slope;
    };

    TORCHASSAY_INLINE explicit Softcap(double height) : height_(splat<V>(T(height))) {
        const double furthest = 512 * height, largest = sizeof(T) == 4 ? 3e38 : 1e308;  // tanh is 1 long before
        const T high = T(2 / height);
        limit_ = splat<V>(T(furthest < largest ? furthest : largest));
        high_ = splat<V>(high), low_ = splat<V>(T(2 / height - double(high)));
    }

    TORCHASSAY_INLINE Point operator()(V x) const {
        const auto negative = x < 0;
        const V size = min_or_second(limit_, negative ? -x : x);
        const Reduced<V> a = reduce(-fused(size, high_, size * low_));
        const V part = a.scale * (a.f * exp_series(a.f));
        const V e = a.scale + part, less = part + (a.scale - 1);  // e^(-2 y) and e^(-2 y) - 1
        const V tanh = -less / (2 + less), v = height_ * tanh;
        return {negative ? -v : v, e * (1 + tanh) * (1 + tanh)};
    }

private:
    V height_, limit_, high_, low_;
};

}  // namespace
}  // namespace torchassay
