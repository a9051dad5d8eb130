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

// What is summed over a row besides R.
template <bool entropy, bool norm, bool spread = false>
struct Wanted {
    static constexpr bool kEntropy = entropy, kNorm = norm, kSpread = spread;
};

// A difference to u as an exponent: as it is, or over the temperature.
struct Unscaled {
    template <class V>
    TORCHASSAY_INLINE V operator()(V d) const {
        return d;
    }
};
template <class V>
struct Scaled {
    V inverse;
    TORCHASSAY_INLINE V operator()(V d) const { return d * inverse; }
};

template <class V>
struct Sums {
    V R{}, T{}, Q{};
    V A{};  // of the differences themselves, neither scaled nor clamped
    TORCHASSAY_INLINE void add(const Sums& other) {
        R += other.R;
        T += other.T;
        Q += other.Q;
        A += other.A;
    }
};

// A row's state, and the sum of u - x_j over all classes but the top one.
template <class V>
struct RowSums : RowState<V> {
    V A;
};

// Adds e^d of K vectors d <= 0 to the sums that are wanted. The K are summed from zero first: a lane that holds the
// top's e^0 = 1 would round every small term alike.
template <class W, int K, class Scale, class V>
TORCHASSAY_INLINE void add_exp(Sums<V>& sums, const Scale& scale, V (&d)[K]) {
    V e[K];
    for (int i = 0; i < K; ++i) d[i] = clamp_exponent(scale(d[i]));
    exp_fast(d, e);
    Sums<V> group{e[0], e[0] * d[0], e[0] * e[0], V{}};
    for (int i = 1; i < K; ++i) {
        group.R += e[i];
        if (W::kEntropy) group.T = fused(e[i], d[i], group.T);
        if (W::kNorm) group.Q = fused(e[i], e[i], group.Q);
    }
    sums.R += group.R;
    if (W::kEntropy) sums.T += group.T;
    if (W::kNorm) sums.Q += group.Q;
}

// Adds the first `count` of K differences to A, which no clamp may touch: padding is left out, a class at -inf is not.
template <class W, int K, class V>
TORCHASSAY_INLINE void add_spread(Sums<V>& sums, const V (&d)[K], int64_t count = K) {
    if (!W::kSpread) return;
    V group{};
    for (int i = 0; i < K; ++i)
        if (i < count) group += d[i];
    sums.A += group;
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

// Calls `call` with what a job wants of a row.
template <class Call>
TORCHASSAY_INLINE auto by_wanted(const ScoreJob& job, const Call& call) {
    const bool entropy = job.wants(kEntropy), norm = job.wants(kGradNorm);
    if (entropy && norm) return call(Wanted<true, true>{});
    if (entropy) return call(Wanted<true, false>{});
    if (norm) return call(Wanted<false, true>{});
    return call(Wanted<false, false>{});
}
template <class T>
TORCHASSAY_INLINE Unscaled scale_of(const ScoreJob&, int64_t, int) {
    return {};
}
template <class T>
TORCHASSAY_INLINE double inverse_at(const ScoreJob&, int64_t) {
    return 1;
}

// Under options there are both sums or none: that halves the code, and together they cost little.
template <class Call>
TORCHASSAY_INLINE auto by_wanted(const OptionJob& job, const Call& call) {
    const bool both = job.wants(kEntropy) || job.wants(kGradNorm);
    if (job.smoothed()) return both ? call(Wanted<true, true, true>{}) : call(Wanted<false, false, true>{});
    return both ? call(Wanted<true, true>{}) : call(Wanted<false, false>{});
}

// 1 / temperature of `count` rows from row i on; the lanes after them repeat the first.
template <class T>
TORCHASSAY_INLINE Inverse<V<T>> inverse_of(const OptionTerms& terms, int64_t i, int count) {
    const Number& temperature = terms.options.temperature;
    if (!temperature.data) {
        const T high = T(terms.inverse);
        return {splat<V<T>>(high), splat<V<T>>(T(terms.inverse - double(high)))};
    }
    T value[Simd<T>::kLanes];
    for (int lane = 0; lane < Simd<T>::kLanes; ++lane)
        value[lane] = static_cast<const T*>(temperature.data)[lane < count ? i + lane : i];
    const V<T> t = load<T>(value), high = 1 / t, product = t * high;
    return {high, ((1 - product) - lost_in_product(t, high, product)) * high};
}
template <class T>
TORCHASSAY_INLINE Scaled<V<T>> scale_of(const OptionJob& job, int64_t i, int count) {
    return {inverse_of<T>(job, i, count).high};
}
template <class T>
TORCHASSAY_INLINE double inverse_at(const OptionJob& job, int64_t i) {
    const Number& temperature = job.options.temperature;
    return temperature.data ? 1 / double(static_cast<const T*>(temperature.data)[i]) : job.inverse;
}

}  // namespace
}  // namespace torchassay
