// Long rows: a vector holds neighbouring columns. One sweep for the two largest values, one for the sums.
#pragma once
#include "row_sums.h"

namespace torchassay {
namespace {

constexpr int64_t kFlush = 32 * Simd<float>::kLanes;  // columns summed in T, 32 in a lane, before they join a double

// Part of a row: a segment, or all of it.
template <class In>
struct Span {
    const In* x;
    int64_t columns;
    int64_t start;  // column of x[0] in the row
};

template <class T>
TORCHASSAY_INLINE TwoLargest<T> over_lanes(const TwoLargest<V<T>>& a) {
    const T m = max_lane(a.m);
    const auto holders = a.m == m;
    const unsigned mask = lane_mask(holders);
    const T u = max_lane(holders ? a.u : a.m);
    return {m, mask & (mask - 1) ? m : u};  // in two lanes: a tie
}

template <class T, class In>
TORCHASSAY_INLINE TwoLargest<T> top_of(const Span<In>& span) {
    constexpr int n = Simd<T>::kLanes;
    const V<T> lowest = splat<V<T>>(-INFINITY);
    TwoLargest<V<T>> a{lowest, lowest}, b = a;
    int64_t j = 0;
    for (; j + 2 * n <= span.columns; j += 2 * n) {
        const Pair<V<T>> pair = load_pair<T>(span.x + j);
        a.add(pair.a);
        b.add(pair.b);
    }
    if (j < span.columns) {
        const Pair<V<T>> pair = load_pair_tail<T>(span.x + j, int(span.columns - j));
        a.add(pair.a);
        b.add(pair.b);
    }
    a.add(b);
    return over_lanes<T>(a);
}

template <class T, class In, bool kEntropy, bool kNorm, bool kFromMemory = true>
TORCHASSAY_INLINE Segment sums_of(const Span<In>& span, const TwoLargest<T>& top) {
    constexpr int n = Simd<T>::kLanes;
    const In* const x = span.x;
    const int64_t columns = span.columns;
    // without a rest any point of reference will do: all d are -inf or NaN
    const V<T> u = splat<V<T>>(top.u == -INFINITY ? T(0) : top.u);
    const int64_t whole = columns / (2 * n) * (2 * n);
    // what comes four rows or segments further in memory arrives while this one is computed
    const auto ahead = [&](int64_t j, int64_t count) {
        if (!kFromMemory) return;
        for (int64_t line = 0; line < count * int64_t(sizeof(In)); line += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(x + j + 4 * columns) + line);
    };
    const V<T> zero{};
    F64 R{}, T_sum{}, Q{};
    for (int64_t j = 0; j < columns;) {
        const int64_t stop = j + kFlush < whole ? j + kFlush : whole;
        Sums<V<T>> sums;
        for (; j + 4 * n <= stop; j += 4 * n) {
            ahead(j, 4 * n);
            const Pair<V<T>> first = load_pair<T>(x + j), second = load_pair<T>(x + j + 2 * n);
            V<T> d[4] = {min_or_second(zero, first.a - u), min_or_second(zero, first.b - u),
                         min_or_second(zero, second.a - u), min_or_second(zero, second.b - u)};
            add_exp<kEntropy, kNorm>(sums, d);
        }
        for (; j < stop || (j == whole && j < columns); j += 2 * n) {
            ahead(j, 2 * n);
            const Pair<V<T>> pair = j < whole ? load_pair<T>(x + j) : load_pair_tail<T>(x + j, int(columns - j));
            V<T> d[2] = {min_or_second(zero, pair.a - u), min_or_second(zero, pair.b - u)};
            add_exp<kEntropy, kNorm>(sums, d);
        }
        R += widened<T>(sums.R);
        if (kEntropy) T_sum += widened<T>(sums.T);
        if (kNorm) Q += widened<T>(sums.Q);
    }
    Segment state{double(top.m), double(top.u), sum_lanes(R), -sum_lanes(T_sum), sum_lanes(Q), 0};
    if (top.u == -INFINITY) {
        state.R = state.T = state.Q = state.R - state.R;  // 0, or NaN if one was seen
    } else {
        state.R -= 1;  // the top class was clamped to e^0: 1 in R and Q, nothing in T, which comes off exactly
        state.Q -= 1;
    }
    return state;
}

// The lowest column that holds m; 0 where there is none, as in a row of NaN.
template <class T, class In>
TORCHASSAY_INLINE int64_t column_of(const Span<In>& span, T m) {
    constexpr int n = Simd<T>::kLanes;
    int64_t j = 0;
    while (j + n <= span.columns && !lane_mask(load<T>(span.x + j) == m)) j += n;
    while (j < span.columns && widen(span.x[j]) != m) ++j;
    return j < span.columns ? span.start + j : 0;
}

template <class T, class In>
TORCHASSAY_INLINE Segment sums_of(const ScoreJob& job, const Span<In>& span, const TwoLargest<T>& top) {
    const bool entropy = job.wants(kEntropy), norm = job.wants(kGradNorm);
    Segment state = entropy && norm ? sums_of<T, In, true, true>(span, top)
                    : entropy       ? sums_of<T, In, true, false>(span, top)
                    : norm          ? sums_of<T, In, false, true>(span, top)
                                    : sums_of<T, In, false, false>(span, top);
    if (job.wants(kPrediction)) state.k = column_of<T, In>(span, top.m);
    return state;
}

template <class T, class In>
TORCHASSAY_INLINE Span<In> span_of(const ScoreJob& job, const In* row, int64_t segment) {
    const int64_t start = segment * kSegment, rest = job.rows.classes - start;
    return {row + start, rest < kSegment ? rest : kSegment, start};
}

TORCHASSAY_INLINE void join(Segment& all, const Segment& next) {
    const RowState<double> a{all.m, all.u, all.R, all.T, all.Q}, b{next.m, next.u, next.R, next.T, next.Q};
    const RowState<double> both = merge<double>(a, b, INFINITY);
    all = {both.m, both.u, both.R, both.T, both.Q, next.m > all.m ? next.k : all.k};
}

}  // namespace
}  // namespace torchassay
