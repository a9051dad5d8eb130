// What a row is reduced to, whichever way it stands: its two largest values and the sums R, T and Q of row_stats.h.
#pragma once
#include "kernels.h"
#include "softcap.h"
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

// How logits become exponents, and how many vectors at once: enough that none waits for the one before.
//
// By their difference to u, as it is,
struct Unscaled {
    static constexpr bool kCapped = false;
    static constexpr int kAtOnce = 4;
    template <class V>
    TORCHASSAY_INLINE V operator()(V d) const {
        return d;
    }
};
// over the temperature,
template <class T>
struct Scaled {
    static constexpr bool kCapped = false;
    static constexpr int kAtOnce = 4;
    V<T> inverse;
    TORCHASSAY_INLINE V<T> operator()(V<T> d) const { return d * inverse; }
};
// or that of capped logits; S is then the sum of (slope_j e^d_j)^2, the norm of a gradient by what was capped.
template <class T>
struct Capped {
    static constexpr bool kCapped = true;
    static constexpr int kAtOnce = 8;
    Softcap<T> cap;
    V<T> inverse;
    TORCHASSAY_INLINE V<T> operator()(V<T> d) const { return d * inverse; }
};

template <class V>
struct Sums {
    V R{}, T{}, Q{};
    V A{};  // of the differences themselves, neither scaled nor clamped
    V S{};  // Q with the squares of the slopes
    TORCHASSAY_INLINE void add(const Sums& other) {
        R += other.R;
        T += other.T;
        Q += other.Q;
        A += other.A;
        S += other.S;
    }
};

// A row's state, and the sums of u - x_j and, under a softcap, of (slope_j e^d_j)^2 over all classes but the top one.
template <class V>
struct RowSums : RowState<V> {
    V A, S;
};

// Adds e^d of K vectors d <= 0 to the sums that are wanted. The K are summed from zero first: a lane that holds the
// top's e^0 = 1 would round every small term alike.
template <class W, int K, class How, class V>
TORCHASSAY_INLINE void add_exp(Sums<V>& sums, const How& how, V (&d)[K], const V (&slope)[K]) {
    V e[K];
    for (int i = 0; i < K; ++i) d[i] = clamp_exponent(how(d[i]));
    exp_fast(d, e);
    Sums<V> group{e[0], e[0] * d[0], e[0] * e[0]};
    for (int i = 1; i < K; ++i) {
        group.R += e[i];
        if (W::kEntropy) group.T = fused(e[i], d[i], group.T);
        if (W::kNorm) group.Q = fused(e[i], e[i], group.Q);
    }
    sums.R += group.R;
    if (W::kEntropy) sums.T += group.T;
    if (W::kNorm) sums.Q += group.Q;
    if constexpr (W::kNorm && How::kCapped) {
        for (int i = 0; i < K; ++i) e[i] *= slope[i], group.S = fused(e[i], e[i], group.S);
        sums.S += group.S;
    }
}

// Adds K vectors of logits, the top class as e^0. Only the first `count` take part in A, which no clamp may touch:
// padding is left out, a class at -inf is not.
template <class W, int K, class How, class V>
TORCHASSAY_INLINE void add_logits(Sums<V>& sums, const How& how, V u, const V (&x)[K], int64_t count = K) {
    V d[K], slope[K];
    if constexpr (How::kCapped) {
        V v[K];
        how.cap(x, v, slope);
        for (int i = 0; i < K; ++i) {
            d[i] = min_or_second(V{}, v[i] - u);
            slope[i] = v[i] > u ? V{} : slope[i];  // the top stays out of S: 1 may be much more than all the rest
        }
    } else {
        for (int i = 0; i < K; ++i) d[i] = min_or_second(V{}, x[i] - u);
    }
    if (W::kSpread) {
        V group{};
        for (int i = 0; i < K; ++i)
            if (i < count) group += d[i];
        sums.A += group;
    }
    add_exp<W>(sums, how, d, slope);
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

// Calls `call` with what a job wants of a row, and how the logits of `count` rows from row i on become exponents.
template <class T, class Call>
TORCHASSAY_INLINE auto by_sums(const ScoreJob& job, int64_t, int, const Call& call) {
    const bool entropy = job.wants(kEntropy), norm = job.wants_squares();
    if (entropy && norm) return call(Wanted<true, true>{}, Unscaled{});
    if (entropy) return call(Wanted<true, false>{}, Unscaled{});
    if (norm) return call(Wanted<false, true>{}, Unscaled{});
    return call(Wanted<false, false>{}, Unscaled{});
}
template <class T>
TORCHASSAY_INLINE double inverse_at(const ScoreJob&, int64_t) {
    return 1;
}
// What a job takes a logit for.
template <class V>
TORCHASSAY_INLINE V logit_of(const ScoreJob&, V x) {
    return x;
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
TORCHASSAY_INLINE Softcap<T> softcap_of(const OptionTerms& terms) {
    return {terms.options.softcap, terms.rate};
}

template <class V>
TORCHASSAY_INLINE V logit_of(const OptionJob& job, V x) {
    if (!job.capped()) return x;
    const V one[1] = {x};
    V v[1], slope[1];
    softcap_of<Element<V>>(job)(one, v, slope);
    return v[0];
}

template <class How, class Call>
TORCHASSAY_INLINE auto by_option_sums(const OptionJob& job, const How& how, const Call& call) {
    const bool both = job.wants(kEntropy) || job.wants_squares();
    if (job.smoothed()) return both ? call(Wanted<true, true, true>{}, how) : call(Wanted<false, false, true>{}, how);
    return both ? call(Wanted<true, true>{}, how) : call(Wanted<false, false>{}, how);
}

// Under options there are both sums or none: that halves the code, and together they cost little.
template <class T, class Call>
TORCHASSAY_INLINE auto by_sums(const OptionJob& job, int64_t i, int count, const Call& call) {
    const bool both = job.wants(kEntropy) || job.wants_squares();
    if (!job.capped() && !job.options.temperature.data && job.inverse == 1)
        return by_option_sums(job, Unscaled{}, call);
    const V<T> inverse = inverse_of<T>(job, i, count).high;
    if (job.capped()) {
        const Capped<T> how{softcap_of<T>(job), inverse};
        return both ? call(Wanted<true, true>{}, how) : call(Wanted<false, false>{}, how);
    }
    return by_option_sums(job, Scaled<T>{inverse}, call);
}
template <class T>
TORCHASSAY_INLINE double inverse_at(const OptionJob& job, int64_t i) {
    const Number& temperature = job.options.temperature;
    return temperature.data ? 1 / double(static_cast<const T*>(temperature.data)[i]) : job.inverse;
}

}  // namespace
}  // namespace torchassay
