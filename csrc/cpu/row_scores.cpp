// Scores of rows of logits on the CPU: one read of memory, two sweeps in cache.
//
// Short rows stand in lanes: `lanes` rows are transposed into a block of L1, then every operation serves all of them.
// Longer rows stand along memory, in segments of 8192 columns: the first sweep finds the two largest values, the second
// sums e^(x - u). The top class is clamped to e^0 = 1 there and taken off the sums exactly. Either way `lanes` states
// are finished at once, by the same code.
#include "rows_along_memory.h"
#include "rows_in_lanes.h"

namespace torchassay {
namespace {

// As torch.argmax: the first NaN of a row that has one, else k. R is NaN for two classes at +inf too.
template <class In>
int64_t first_nan(const In* row, int64_t classes, int64_t k) {
    int64_t j = 0;
    while (j < classes && widen(row[j]) == widen(row[j])) ++j;
    return j < classes ? j : k;
}

// ---- finishing `lanes` rows at once

template <class T>
TORCHASSAY_INLINE void write(void* out, int64_t i, int count, V<T> v) {
    T* p = static_cast<T*>(out) + i;
    if (count == Simd<T>::kLanes)
        store<T>(p, v);
    else
        std::memcpy(p, &v, count * sizeof(T));
}

// The targets of `count` rows: their logits (NaN where out of range), and which are to be counted.
template <class T, class In>
TORCHASSAY_INLINE void look_up(ScoreJob& job, const In* const* rows, int64_t i, int count, V<T>* x_y,
                               typename Simd<T>::I* counted) {
    T value[Simd<T>::kLanes] = {};
    typename Simd<T>::Int flag[Simd<T>::kLanes] = {};
    for (int lane = 0; lane < count; ++lane) {
        const int64_t y = target_at(job.targets, i + lane);
        const bool ignored = y == job.targets.ignore_index, inside = y >= 0 && y < job.rows.classes;
        flag[lane] = ignored ? 0 : -1;
        value[lane] = inside ? widen(rows[lane][y]) : T(NAN);
        if (__builtin_expect(!inside && !ignored, 0)) {
            int64_t first = job.bad_row.load();
            while (i + lane < first && !job.bad_row.compare_exchange_weak(first, i + lane)) {
            }
        }
    }
    std::memcpy(x_y, value, sizeof(value));
    std::memcpy(counted, flag, sizeof(flag));
}

template <class T, class In>
TORCHASSAY_INLINE void finish_rows(ScoreJob& job, const In* const* rows, int64_t i, int count,
                                   const RowState<V<T>>& state) {
    const V<T> infinity = splat<V<T>>(INFINITY), zero{};
    const Inverse<V<T>> inverse{splat<V<T>>(1), zero};
    const Finished<V<T>> f = finish(state, inverse, infinity);
    V<T> mu{}, miss{}, margin{};
    if (job.wants(kEntropy)) {
        mu = entropy_offset(f, state);
        write<T>(job.out[kEntropy], i, count, f.log_c + mu);
    }
    if (job.wants(kLse)) write<T>(job.out[kLse], i, count, f.lse);
    if (job.wants(kConfidence)) write<T>(job.out[kConfidence], i, count, f.c);
    if (job.wants(kLeastConfidence)) write<T>(job.out[kLeastConfidence], i, count, f.r * f.c);
    if (job.wants(kMargin) || job.wants(kTargetMargin)) margin = margin_of(f, state, infinity);
    if (job.wants(kMargin)) write<T>(job.out[kMargin], i, count, margin);
    if (job.targets.data) {
        V<T> x_y;
        typename Simd<T>::I counted;
        look_up<T, In>(job, rows, i, count, &x_y, &counted);
        const Labelled<V<T>> l = label(f, x_y, inverse, infinity);
        miss = counted ? l.miss : zero;
        if (job.wants(kLoss)) write<T>(job.out[kLoss], i, count, counted ? l.loss : zero);
        if (job.wants(kGradNorm)) write<T>(job.out[kGradNorm], i, count, counted ? grad_norm_of(f, state, l) : zero);
        if (job.wants(kTargetMargin))
            write<T>(job.out[kTargetMargin], i, count, counted ? target_margin_of(f, l, margin) : zero);
    }
    if (job.wants(kStats)) {
        const V<T> stats[6] = {f.m, state.u, f.z, f.r, miss, mu};
        for (int q = 0; q < 6; ++q) write<T>(job.out[kStats], q * job.rows.count() + i, count, stats[q]);
    }
}

// ---- entry points

template <class T, class In>
void score_states(ScoreJob& job, int64_t begin, int64_t end, const Segment* states) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t segments = job.segments();
    auto* prediction = static_cast<int64_t*>(job.out[kPrediction]);
    RowCursor<In> cursor(job.rows, begin);
    for (int64_t i = begin; i < end; i += n) {
        const int count = int(end - i < n ? end - i : n);
        const In* rows[n];
        for (int lane = 0; lane < count; ++lane) rows[lane] = cursor.next();
        Segment found[n];
        if (states) {
            for (int lane = 0; lane < count; ++lane) {
                const Segment* row = states + (i + lane) * segments;
                found[lane] = row[0];
                for (int64_t s = 1; s < segments; ++s) join(found[lane], row[s]);
            }
        } else {
            // the top of the next span is found before this one is summed, so that neither waits for the other
            Span<In> span = span_of<T, In>(job, rows[0], 0);
            TwoLargest<T> top = top_of<T, In>(span);
            for (int lane = 0; lane < count; ++lane) {
                for (int64_t s = 0; s < segments; ++s) {
                    const Span<In> here = span;
                    const TwoLargest<T> its = top;
                    if (s + 1 < segments || lane + 1 < count) {
                        span = s + 1 < segments ? span_of<T, In>(job, rows[lane], s + 1)
                                                : span_of<T, In>(job, rows[lane + 1], 0);
                        top = top_of<T, In>(span);
                    }
                    const Segment state = sums_of<T, In>(job, here, its);
                    s ? join(found[lane], state) : void(found[lane] = state);
                }
            }
        }
        T lanes[5][n] = {};
        for (int lane = 0; lane < count; ++lane) {
            const Segment& all = found[lane];
            lanes[0][lane] = T(all.m), lanes[1][lane] = T(all.u);
            lanes[2][lane] = T(all.R), lanes[3][lane] = T(all.T), lanes[4][lane] = T(all.Q);
            if (prediction)
                prediction[i + lane] = all.R == all.R ? all.k : first_nan(rows[lane], job.rows.classes, all.k);
        }
        const RowState<V<T>> state{load<T>(lanes[0]), load<T>(lanes[1]), load<T>(lanes[2]), load<T>(lanes[3]),
                                   load<T>(lanes[4])};
        finish_rows<T, In>(job, rows, i, count, state);
    }
}

template <class T, class In>
void score_rows(ScoreJob& job, int64_t begin, int64_t end) {
    const int64_t classes = job.rows.classes;
    if (classes > kInLanes) return score_states<T, In>(job, begin, end, nullptr);
    constexpr int n = Simd<T>::kLanes;
    alignas(64) T block[kInLanes * n];  // kInLanes is a multiple of four
    auto* prediction = static_cast<int64_t*>(job.out[kPrediction]);
    RowCursor<In> cursor(job.rows, begin);
    for (int64_t i = begin; i < end; i += n) {
        const int count = int(end - i < n ? end - i : n);
        const In* rows[n];
        for (int lane = 0; lane < n; ++lane)
            rows[lane] = lane < count ? cursor.next() : rows[0];  // spare lanes repeat the first row
        transpose<T, In>(rows, classes, block);
        for (int lane = 0; lane < n; ++lane) {  // the next rows arrive while these are computed
            const char* next = reinterpret_cast<const char*>(rows[lane] + n * job.rows.inner_stride);
            for (int64_t line = 0; line < classes * int64_t(sizeof(In)); line += 64) __builtin_prefetch(next + line);
        }
        const RowState<V<T>> state = lanes_state<T>(job, block);
        finish_rows<T, In>(job, rows, i, count, state);
        if (prediction)
            for (int lane = 0; lane < count; ++lane) {
                const int64_t k = column_of<T>(block, classes, lane, state.m[lane]);
                prediction[i + lane] = state.R[lane] == state.R[lane] ? k : first_nan(rows[lane], classes, k);
            }
    }
}

template <class T, class In>
void score_segment(const ScoreJob& job, int64_t row, int64_t segment, Segment* out) {
    const Span<In> span = span_of<T, In>(job, RowCursor<In>(job.rows, row).next(), segment);
    *out = sums_of<T, In>(job, span, top_of<T, In>(span));
}

}  // namespace

namespace TORCHASSAY_ISA {
extern const int kLanes = Simd<float>::kLanes;
void score_rows_any(ScoreJob& job, int64_t begin, int64_t end) { TORCHASSAY_BY_DTYPE(score_rows, begin, end) }
void score_segment_any(const ScoreJob& job, int64_t row, int64_t segment, Segment* out) {
    TORCHASSAY_BY_DTYPE(score_segment, row, segment, out)
}
void score_states_any(ScoreJob& job, int64_t begin, int64_t end, const Segment* states) {
    TORCHASSAY_BY_DTYPE(score_states, begin, end, states)
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
