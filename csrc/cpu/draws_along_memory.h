// Several draws of a long row: each is written to memory of the thread's own, which the sweeps of rows_along_memory.h
// then read.
#pragma once
#include "draw_job.h"
#include "rows_along_memory.h"

namespace torchassay {
namespace {

constexpr int64_t whole_runs(int64_t columns) { return (columns + kRun - 1) / kRun * kRun; }

// What a thread keeps of one row: a draw, and with the mixture all of it and the sum of the draws' probabilities.
template <class T>
int64_t scratch_along_memory(const DrawJob& job) {
    const int64_t classes = whole_runs(job.rows.classes);
    const int64_t kept = job.wants_mixture() ? 2 * classes : classes < kSegment ? classes : kSegment;
    return kept * sizeof(T) + 64;  // and room to begin on a cache line
}

// A vector of T out of one of float: part 0 or, where T is double, 1.
template <class T>
TORCHASSAY_INLINE V<T> part_of(F32 x, int part) {
    if constexpr (sizeof(T) == 4)
        return (void)part, x;
    else
        return part ? widen_high(x) : widen_low(x);
}

// Writes some columns of a draw to y, in whole runs with -inf past the end; start is the column of x[0]. Returns their
// two largest values.
template <class T, class In, bool kNoise>
TORCHASSAY_INLINE TwoLargest<T> write_draw(const Span<In>& x, const Noise<T>& noise, uint32_t draw, T* y) {
    constexpr int n = Simd<T>::kLanes, parts = Simd<float>::kLanes / n;
    const V<T> lowest = splat<V<T>>(-INFINITY);
    TwoLargest<V<T>> top{lowest, lowest};
    for (int64_t run = 0; run < x.columns; run += kRun) {
        F32 normals[kRunVectors] = {};
        if (kNoise) random_run<false>(noise.rows, draw, x.start + run, normals);
        for (int i = 0; i < kRun / n; ++i) {
            const int64_t j = run + i * n, left = x.columns - j;
            V<T> v = left >= n ? load<T>(x.x + j) : left > 0 ? load_tail<T>(x.x + j, int(left)) : lowest;
            if (kNoise) v = noise.add(v, part_of<T>(normals[i / parts], i % parts));
            store<T>(y + j, v);
            top.add(v);
        }
    }
    return over_lanes<T>(top);
}

// The state of a draw, which stays in y where all of it is kept.
template <class T, class In, bool kNoise>
TORCHASSAY_INLINE Segment draw_state(const DrawJob& job, const In* row, const Noise<T>& noise, int64_t draw, T* y) {
    Segment all{};
    for (int64_t start = 0; start < job.rows.classes; start += kSegment) {
        const int64_t rest = job.rows.classes - start, columns = rest < kSegment ? rest : kSegment;
        T* const here = job.wants_mixture() ? y + start : y;
        const Span<In> x{row + start + draw * job.draws.stride, columns, start};
        const TwoLargest<T> top = write_draw<T, In, kNoise>(x, noise, uint32_t(draw), here);
        const Segment state = sums_of<T, Wanted<true, false>, T, Unscaled, false>(Span<T>{here, columns, start}, top,
                                                                                  second_of(top), Unscaled{});
        start ? join(all, state, 1) : void(all = state);
    }
    return all;
}

// Adds e^(y - m) c of whole runs to p.
template <class T>
TORCHASSAY_INLINE void add_probabilities(const T* y, int64_t columns, T m, T c, T* p) {
    constexpr int n = Simd<T>::kLanes;
    for (int64_t j = 0; j < columns; j += 4 * n) {
        V<T> d[4], e[4];
        for (int i = 0; i < 4; ++i) d[i] = clamp_exponent(load<T>(y + j + i * n) - m);
        exp_fast(d, e);
        for (int i = 0; i < 4; ++i) store<T>(p + j + i * n, fused(e[i], splat<V<T>>(c), load<T>(p + j + i * n)));
    }
}

// The entropy of p / draws, whole runs with zeros past the end. As in row_stats.h the top stays out of the sums:
// -p_k ln p_k = p_k log1p(s / p_k), where s is the sum of the others, which 1 - p_k would not be.
template <class T>
TORCHASSAY_INLINE double mixture_entropy(const T* p, int64_t columns, T draws) {
    constexpr int n = Simd<T>::kLanes;
    V<T> lanes = splat<V<T>>(-INFINITY);
    for (int64_t j = 0; j < columns; j += n) lanes = max_or_second(load<T>(p + j), lanes);
    const T top = max_lane(lanes);
    const T share = 1 / draws;
    F64 sum{}, logs{};
    int ties = -1;
    for (int64_t j = 0; j < columns;) {
        const int64_t stop = j + kFlush < columns ? j + kFlush : columns;
        V<T> its_sum{}, its_logs{};
        for (; j < stop; j += n) {
            const V<T> q = load<T>(p + j);
            const auto is_top = q == top;
            ties += __builtin_popcount(lane_mask(is_top));
            const V<T> rest = select(is_top, V<T>{}, q * share);
            its_sum += rest;
            its_logs = fused(rest, log_nonnegative(rest), its_logs);
        }
        sum += widened<T>(its_sum);
        logs += widened<T>(its_logs);
    }
    const double p_k = double(top) * share;
    const double s = sum_lanes(sum) + ties * p_k;
    return p_k * std::log1p(s / p_k) - (sum_lanes(logs) + ties * p_k * std::log(p_k));
}

template <class T, class In, bool kNoise>
TORCHASSAY_INLINE void draws_along_memory(const DrawJob& job, int64_t begin, int64_t end, void* scratch) {
    const int64_t count = job.draws.count, columns = whole_runs(job.rows.classes);
    T* const y = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
    T* const p = y + columns;
    RowCursor<In> cursor(job.rows, begin);
    for (int64_t i = begin; i < end; ++i) {
        const In* const row = cursor.next();
        const Noise<T> noise(job, i);
        if (job.wants_mixture()) std::memset(p, 0, columns * sizeof(T));
        double entropy = 0;
        for (int64_t t = 0; t < count; ++t) {
            const Segment s = draw_state<T, In, kNoise>(job, row, noise, t, y);
            const RowState<double> state{s.m, s.u, s.R, s.T, s.Q};
            const Finished<double> f = finish<double>(state, INFINITY);
            entropy += f.log_c + entropy_offset(f, state);
            if (job.wants_mixture()) add_probabilities<T>(y, columns, T(f.m), T(f.c), p);
        }
        entropy /= double(count);
        const double mixture = job.wants_mixture() ? mixture_entropy<T>(p, columns, T(count)) : 0;
        const double gain = mixture - entropy;
        const double found[kDrawSlots] = {entropy, mixture, gain < 0 ? 0 : gain};
        for (int slot = 0; slot < kDrawSlots; ++slot)
            if (job.out[slot]) static_cast<T*>(job.out[slot])[i] = T(found[slot]);
    }
}

}  // namespace
}  // namespace torchassay
