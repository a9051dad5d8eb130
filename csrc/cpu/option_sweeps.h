// Sums over mapped logits, and the norm of a gradient as a sweep of its own.
//
// A row's logits are mapped into a block of scratch first, in the type that is computed in. A vector of the block holds
// neighbouring columns of one row, or, for `lanes` short rows, one column of all of them: the sums are the same.
#pragma once
#include "option_finish.h"
#include "softcap.h"

namespace torchassay {
namespace {

template <class T>
struct Block {
    T *v, *slope, *b;  // slope under a softcap, b of probabilities
    int64_t steps;     // vectors, a multiple of four; past the row v = -inf and slope = b = 0
    // what this memory is for next, of logits and of probabilities, and the bytes of a vector there
    const char *next = nullptr, *next_b = nullptr;
    int64_t bytes = 0;
};

// In `scratch`, from vector `at` of `all` on.
template <class T>
TORCHASSAY_INLINE Block<T> block_in(void* scratch, int64_t all, int64_t at, int64_t steps) {
    constexpr int n = Simd<T>::kLanes;
    T* const v = static_cast<T*>(scratch) + at * n;
    return {v, v + all * n, v + 2 * all * n, steps, nullptr, nullptr, 0};
}

// Asks for a half of four vectors of what comes next: the first while a block is mapped, if that takes its time, the
// second while it is summed.
template <class T, bool kOwn>
TORCHASSAY_INLINE void fetch(const Block<T>& block, int64_t s, int half) {
    const auto ask = [&](const char* p, int64_t bytes) TORCHASSAY_INLINE_LAMBDA {
        p += s * bytes + half * 2 * bytes;
        for (int64_t line = 0; line < 2 * bytes; line += 64) __builtin_prefetch(p + line);
    };
    ask(block.next, block.bytes);
    if (kOwn) ask(block.next_b, kBytes);
}

// A sum of each lane in double.
template <class T>
struct Wide {
    F64 low{}, high{};
    TORCHASSAY_INLINE void add(V<T> x) {
        if constexpr (sizeof(T) == 8)
            low += x;
        else
            low += widen_low(x), high += widen_high(x);
    }
    TORCHASSAY_INLINE void add_square(V<T> x) {
        if constexpr (sizeof(T) == 8) {
            low = fused(x, x, low);
        } else {
            const F64 a = widen_low(x), b = widen_high(x);
            low = fused(a, a, low), high = fused(b, b, high);
        }
    }
    TORCHASSAY_INLINE double all() const { return sum_lanes(low + high); }
    TORCHASSAY_INLINE void each(double* lanes) const {
        std::memcpy(lanes, &low, sizeof(low));
        if (sizeof(T) == 4) std::memcpy(lanes + Simd<double>::kLanes, &high, sizeof(high));
    }
};

// What the sums of `lanes` rows are kept in, a number a row.
template <class T>
struct SweptRows {
    static constexpr int n = Simd<T>::kLanes;
    T m[n] = {}, u[n] = {}, highest[n] = {};   // highest: of the logits before they were capped
    T R[n] = {}, T_sum[n] = {}, Q[n] = {};     // Q if `gini` is asked for
    T rest[n] = {}, gap[n] = {}, top[n] = {};  // of the target: LinearTarget of row_stats.h, the label left out
};

// b_j of all classes, the label's own part left out: the row's, of probabilities, or the same for every row.
template <class T, bool kOwn, bool kLanes>
TORCHASSAY_INLINE V<T> b_of(const OptionTerms& terms, const Block<T>& block, int64_t s) {
    constexpr int n = Simd<T>::kLanes;
    const T* spread = static_cast<const T*>(terms.spread);
    if (kOwn) return load<T>(block.b + s * n);
    return kLanes ? splat<V<T>>(spread[s]) : load<T>(spread + s * n);
}

constexpr int kTopMark = -1, kLabelMark = -2;  // in the place of e^(v - u), which is never negative

// The sums of a block, whose v becomes e^((v - u) / temperature), the top class marked.
template <class T, bool kOwn, bool kLanes>
void sum_block(const OptionTerms& terms, const Block<T>& block, V<T> m, V<T> u, V<T> inverse, SweptRows<T>& rows,
               int row) {
    constexpr int n = Simd<T>::kLanes;
    const V<T> at = u == -INFINITY ? m : u, zero{};  // without a rest the top is its own point of reference
    const bool slow_map = kOwn || terms.capped();
    Wide<T> R, T_sum, rest, gap;
    V<T> top{};
    for (int64_t s = 0; s < block.steps;) {
        const int64_t stop = s + 32 < block.steps ? s + 32 : block.steps;
        V<T> part_R{}, part_T{}, part_rest{}, part_gap{};
        for (; s < stop; s += 4) {
            V<T> d[4], e[4];
            typename Simd<T>::I is_top[4];
            if (!kLanes && !slow_map) fetch<T, false>(block, s, 0);
            if (!kLanes) fetch<T, kOwn>(block, s, 1);
            for (int i = 0; i < 4; ++i) {
                const V<T> v = load<T>(block.v + (s + i) * n);
                is_top[i] = v > u;  // at a tie there is none
                d[i] = min_or_second(zero, v - at);
            }
            V<T> group_rest{}, group_gap{};
            for (int i = 0; i < 4; ++i) {
                const V<T> b = b_of<T, kOwn, kLanes>(terms, block, s + i), others = is_top[i] ? zero : b;
                top = is_top[i] ? b : top;
                group_rest += others;
                group_gap += others == 0 ? zero : others * d[i];
            }
            part_rest += group_rest;
            part_gap += group_gap;
            for (int i = 0; i < 4; ++i) d[i] = clamp_exponent(d[i] * inverse);
            exp_fast(d, e);
            part_R += (e[0] + e[1]) + (e[2] + e[3]);
            part_T += fused(e[0], d[0], e[1] * d[1]) + fused(e[2], d[2], e[3] * d[3]);
            for (int i = 0; i < 4; ++i) store<T>(block.v + (s + i) * n, is_top[i] ? splat<V<T>>(kTopMark) : e[i]);
        }
        R.add(part_R);
        T_sum.add(part_T);
        rest.add(part_rest);
        gap.add(part_gap);
    }
    const auto keep = [&](const Wide<T>& sum, T* out, double less, double sign) {
        if (kLanes) {
            double lanes[n];
            sum.each(lanes);
            for (int lane = 0; lane < n; ++lane) out[lane] = T(sign * (lanes[lane] - less));
        } else {
            out[row] = T(sign * (sum.all() - less));
        }
    };
    keep(R, rows.R, 1, 1);  // the top class was clamped to e^0, which comes off exactly
    keep(T_sum, rows.T_sum, 0, -1);
    keep(rest, rows.rest, 0, 1);
    keep(gap, rows.gap, 0, -1);
    Wide<T> only;  // of one lane, if there is a top at all
    only.add(top);
    keep(only, rows.top, 0, 1);
}

// Q and 1 of each lane, from what sum_block left: its mark of the top squares to 1, as a tied top's e^0 does.
template <class T>
Wide<T> squares_of(const Block<T>& block) {
    static_assert(kTopMark * kTopMark == 1);
    Wide<T> sum;
    for (int64_t s = 0; s < block.steps; ++s) sum.add_square(load<T>(block.v + s * Simd<T>::kLanes));
    return sum;
}

// The entries beta p_j - b_j of a gradient, the slope left out: those of the top and the label, and for any other class
// the factor of e^((v - u) / temperature).
template <class T>
struct Entries {
    V<T> factor{}, top{}, label{};
    V<T> inverse{};
    typename Simd<T>::I counted{};
};

// The sum of the squares of a block's entries, of each lane.
template <class T, bool kOwn, bool kLanes, bool kCapped>
TORCHASSAY_INLINE Wide<T> square_block(const OptionTerms& terms, const Block<T>& block, V<T> factor, V<T> top,
                                       V<T> label) {
    constexpr int n = Simd<T>::kLanes;
    Wide<T> even, odd;
    for (int64_t s = 0; s < block.steps; s += 2)
        for (int i = 0; i < 2; ++i) {
            const V<T> e = load<T>(block.v + (s + i) * n);
            V<T> entry = fused(e, factor, -b_of<T, kOwn, kLanes>(terms, block, s + i));
            entry = e == kTopMark ? top : e == kLabelMark ? label : entry;
            if (kCapped) entry *= load<T>(block.slope + (s + i) * n);
            (i ? odd : even).add_square(entry);
        }
    even.low += odd.low;
    even.high += odd.high;
    return even;
}

template <class T, bool kLanes>
void sum_block(const OptionTerms& terms, const Block<T>& block, V<T> m, V<T> u, V<T> inverse, SweptRows<T>& rows,
               int row) {
    if (terms.own)
        sum_block<T, true, kLanes>(terms, block, m, u, inverse, rows, row);
    else
        sum_block<T, false, kLanes>(terms, block, m, u, inverse, rows, row);
}

template <class T, bool kLanes>
Wide<T> square_block(const OptionTerms& terms, const Block<T>& block, V<T> factor, V<T> top, V<T> label) {
    if (terms.own)
        return terms.capped() ? square_block<T, true, kLanes, true>(terms, block, factor, top, label)
                              : square_block<T, true, kLanes, false>(terms, block, factor, top, label);
    return terms.capped() ? square_block<T, false, kLanes, true>(terms, block, factor, top, label)
                          : square_block<T, false, kLanes, false>(terms, block, factor, top, label);
}

// Writes every signal of `count` rows but the norm of the gradient, which is left to its entries.
template <class T>
Entries<T> finish_swept(OptionJob& job, const SweptRows<T>& rows, const OwnLabels<T>& own, int64_t i, int count) {
    const V<T> infinity = splat<V<T>>(INFINITY), zero{};
    const Inverse<V<T>> inverse = inverse_of<T>(job, i, count);
    const RowState<V<T>> state{load<T>(rows.m), load<T>(rows.u), load<T>(rows.R), load<T>(rows.T_sum), load<T>(rows.Q)};
    const Finished<V<T>> f = finish(state, inverse, infinity);
    const auto [mu, margin] = write_unlabelled<T>(job, i, count, f, state);
    LinearTarget<V<T>> t{load<T>(rows.rest), load<T>(rows.gap) * inverse.high, load<T>(rows.top)};
    Labelled<V<T>> l{};
    if (job.targets.data) {
        l = label(f, own.x_y, inverse, infinity);
        t = add_label(t, f, l, own.weight);
        if (job.wants(kTargetMargin))
            write<T>(job.out[kTargetMargin], i, count, own.counted ? target_margin_of(f, l, margin) : zero);
    }
    LinearLoss<V<T>> loss = linear_loss(f, t, splat<V<T>>(T(job.options.z_loss)));
    const Entries<T> entries{loss.beta * f.z * f.c, top_entry(f.c, f.r, loss.rest, loss.beta, t.top),
                             loss.beta * l.e_y * f.c - (own.spread + own.weight), inverse.high, own.counted};
    loss.loss = own.counted ? loss.loss : zero;
    loss.rest = own.counted ? loss.rest : zero;
    loss.beta = own.counted ? loss.beta : zero;
    if (job.wants(kLoss)) write<T>(job.out[kLoss], i, count, loss.loss);
    if (job.wants(kStats)) write_stats<T>(job, i, count, f, state.u, mu, loss.rest, loss.beta);
    return entries;
}

}  // namespace
}  // namespace torchassay
