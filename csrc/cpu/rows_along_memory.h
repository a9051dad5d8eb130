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

// The point of reference of a row's sums: without a rest any will do, as all differences are -inf or NaN.
template <class T>
TORCHASSAY_INLINE V<T> second_of(const TwoLargest<T>& top) {
    return splat<V<T>>(top.u == -INFINITY ? T(0) : top.u);
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

// The sums relative to u in all lanes, which is what `how` makes of the second largest logit.
template <class T, class W, class In, class How, bool kFromMemory = true>
TORCHASSAY_INLINE Segment sums_of(const Span<In>& span, const TwoLargest<T>& top, V<T> u, const How& how) {
    constexpr int n = Simd<T>::kLanes;
    const In* const x = span.x;
    const int64_t columns = span.columns;
    const int64_t whole = columns / (2 * n) * (2 * n);
    // what comes four rows or segments further in memory arrives while this one is computed; inlined, because GCC takes
    // a function that only prefetches for one that does nothing
    const auto ahead = [&](int64_t j, int64_t count) TORCHASSAY_INLINE_LAMBDA {
        if (!kFromMemory) return;
        for (int64_t line = 0; line < count * int64_t(sizeof(In)); line += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(x + j + 4 * columns) + line);
    };
    F64 R{}, T_sum{}, Q{}, A{}, S{};
    for (int64_t j = 0; j < columns;) {
        const int64_t stop = j + kFlush < whole ? j + kFlush : whole;
        Sums<V<T>> sums;
        constexpr int K = How::kAtOnce;
        for (; j + K * n <= stop; j += K * n) {
            ahead(j, K * n);
            V<T> logits[K];
            for (int i = 0; i < K; i += 2) {
                const Pair<V<T>> pair = load_pair<T>(x + j + i * n);
                logits[i] = pair.a, logits[i + 1] = pair.b;
            }
            add_logits<W>(sums, how, u, logits);
        }
        for (; K == 8 && j + 4 * n <= stop; j += 4 * n) {
            const Pair<V<T>> first = load_pair<T>(x + j), second = load_pair<T>(x + j + 2 * n);
            const V<T> logits[4] = {first.a, first.b, second.a, second.b};
            add_logits<W>(sums, how, u, logits);
        }
        for (; j < stop || (j == whole && j < columns); j += 2 * n) {
            ahead(j, 2 * n);
            const Pair<V<T>> pair = j < whole ? load_pair<T>(x + j) : load_pair_tail<T>(x + j, int(columns - j));
            const V<T> logits[2] = {pair.a, pair.b};
            add_logits<W>(sums, how, u, logits, j < whole ? 2 : 0);
        }
        R += widened<T>(sums.R);
        if (W::kEntropy) T_sum += widened<T>(sums.T);
        if (W::kNorm) Q += widened<T>(sums.Q);
        if (W::kNorm && How::kCapped) S += widened<T>(sums.S);
        if (W::kSpread) A += widened<T>(sums.A);
    }
    Segment state{double(top.m), double(top.u), sum_lanes(R), -sum_lanes(T_sum), sum_lanes(Q), 0, 0, columns - 1, 0};
    if (How::kCapped) state.S = sum_lanes(S);
    if (W::kSpread) {
        T rest = 0;  // of the tail: its padding has no part in A
        for (int64_t j = whole; j < columns; ++j) {
            const T d = widen(x[j]) - u[0];
            rest += d > 0 ? T(0) : d;
        }
        state.A = -(sum_lanes(A) + double(rest));
    }
    if (top.u == -INFINITY) {
        state.R = state.T = state.Q = state.S = state.R - state.R;  // 0, or NaN if one was seen
    } else {
        state.R -= 1;  // the top class was clamped to e^0: 1 in R and Q, nothing in T and A, which comes off exactly
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

template <class T, class In, class Job>
TORCHASSAY_INLINE Segment sums_of(const Job& job, int64_t row, const Span<In>& span, const TwoLargest<T>& top, V<T> u) {
    Segment state = by_sums<T>(job, row, 1, [&](auto wanted, const auto& how) TORCHASSAY_INLINE_LAMBDA {
        return sums_of<T, decltype(wanted)>(span, top, u, how);
    });
    if (job.wants(kPrediction)) state.k = column_of<T, In>(span, top.m);
    return state;
}

template <class T, class In, class Job>
TORCHASSAY_INLINE Span<In> span_of(const Job& job, const In* row, int64_t segment) {
    const int64_t most = job.columns_at_once(), start = segment * most, rest = job.rows.classes - start;
    return {row + start, rest < most ? rest : most, start};
}

// The sum A of a part of a row, which is relative to its own u, relative to a higher one.
TORCHASSAY_INLINE double spread_below(double u, const Segment& part) {
    if (part.others == 0) return 0;
    return part.u == -INFINITY ? INFINITY : part.A + double(part.others) * (u - part.u);
}

// Joins the state of the next part of a row to that of those before. The sums are in units of the temperature, of which
// `inverse` is the inverse, the tops are not.
TORCHASSAY_INLINE void join(Segment& all, const Segment& next, double inverse) {
    const bool later = next.m > all.m;
    const double m = later ? next.m : all.m, loser = later ? all.m : next.m, kept = later ? next.u : all.u;
    const double u = loser > kept ? loser : kept;
    // a difference of two tops is exact where they are scaled from m on
    const double origin = inverse == 1 || m - m != 0 ? 0 : m;
    const auto scaled = [&](double top) { return inverse == 1 ? top : (top - origin) * inverse; };
    const RowState<double> a{scaled(all.m), scaled(all.u), all.R, all.T, all.Q};
    const RowState<double> b{scaled(next.m), scaled(next.u), next.R, next.T, next.Q};
    const RowState<double> both = merge<double>(a, b, INFINITY);
    const double A = u == -INFINITY ? INFINITY : spread_below(u, all) + spread_below(u, next) + (u - loser);
    all = {m, u, both.R, both.T, both.Q, later ? next.k : all.k, A, all.others + next.others + 1, 0};
}

}  // namespace
}  // namespace torchassay
