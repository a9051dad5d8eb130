// What a row is reduced to, whichever way it stands: its two largest values and the sums R, T and Q of row_stats.h.
#pragma once
#include "kernels.h"
#include "vec_math.h"
#include "vec_memory.h"
// after the vector operations it is made of
#include "../row_stats.h"

namespace torchassay {
namespace {

template <class T>
using V = typename Simd<T>::V;

template <class V>
struct Sums {
    V R{}, T{}, Q{};
};

// Adds e^d of K vectors d <= 0 to the sums that are wanted. The K are summed from zero first: a lane that holds the
// top's e^0 = 1 would round every small term alike.
template <bool kEntropy, bool kNorm, int K, class V>
TORCHASSAY_INLINE void add_exp(Sums<V>& sums, V (&d)[K]) {
    V e[K];
    for (int i = 0; i < K; ++i) d[i] = clamp_exponent(d[i]);
    exp_fast(d, e);
    Sums<V> group{e[0], e[0] * d[0], e[0] * e[0]};
    for (int i = 1; i < K; ++i) {
        group.R += e[i];
        if (kEntropy) group.T = fused(e[i], d[i], group.T);
        if (kNorm) group.Q = fused(e[i], e[i], group.Q);
    }
    sums.R += group.R;
    if (kEntropy) sums.T += group.T;
    if (kNorm) sums.Q += group.Q;
}

template <class V>
struct TwoLargest {
    V m, u;
    TORCHASSAY_INLINE void add(V x) {  // a NaN is passed over here; it reaches the sums
        u = max_or_second(min_or_second(x, m), u);
        m = max_or_second(x, m);
    }
    TORCHASSAY_INLINE void add(const TwoLargest& other) {
        u = max_or_second(min_or_second(other.m, m), max_or_second(other.u, u));
        m = max_or_second(other.m, m);
    }
};

}  // namespace
}  // namespace torchassay
