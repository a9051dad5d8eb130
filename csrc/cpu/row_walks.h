// How the rows of a job are walked, by whatever kind of job it is. Short rows stand in lanes: `lanes` rows are
// transposed into a block of L1, then every operation serves all of them; rows whose classes stand apart in memory are
// neighbours there and need no transposition. Other rows stand along memory, in segments of 8192 columns: the first
// sweep finds the two largest values, the second sums e^(x - u). The top class is clamped to e^0 = 1 there and taken
// off the sums exactly. Either way `lanes` states are finished at once, by the same code.
//
// Include this after finish_rows<T>(job, logit_of, i, count, state).
#pragma once
#include "rows_along_memory.h"
#include "rows_in_lanes.h"

namespace torchassay {
namespace {

template <class T, class In, class Job>
void score_states(Job& job, int64_t begin, int64_t end, const Segment* states) {
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
                for (int64_t s = 1; s < segments; ++s) join(found[lane], row[s], inverse_at<T>(job, i + lane));
            }
        } else {
            // the top of the next span is found before this one is summed, so that neither waits for the other
            Span<In> span = span_of<T, In>(job, rows[0], 0);
            TwoLargest<T> top = top_of<T, In>(span);
            V<T> u = logit_of(job, second_of(top));
            for (int lane = 0; lane < count; ++lane) {
                for (int64_t s = 0; s < segments; ++s) {
                    const Span<In> here = span;
                    const TwoLargest<T> its = top;
                    const V<T> its_u = u;
                    if (s + 1 < segments || lane + 1 < count) {
                        span = s + 1 < segments ? span_of<T, In>(job, rows[lane], s + 1)
                                                : span_of<T, In>(job, rows[lane + 1], 0);
                        top = top_of<T, In>(span);
                        u = logit_of(job, second_of(top));
                    }
                    const Segment state = sums_of<T, In>(job, i + lane, here, its, its_u);
                    s ? join(found[lane], state, inverse_at<T>(job, i + lane)) : void(found[lane] = state);
                }
            }
        }
        T lanes[7][n] = {};
        for (int lane = 0; lane < count; ++lane) {
            const Segment& all = found[lane];
            lanes[0][lane] = T(all.m), lanes[1][lane] = T(all.u);
            lanes[2][lane] = T(all.R), lanes[3][lane] = T(all.T), lanes[4][lane] = T(all.Q);
            lanes[5][lane] = T(all.A), lanes[6][lane] = T(all.S);
            if (prediction) prediction[i + lane] = all.R == all.R ? all.k : first_nan(rows[lane], job.rows, all.k);
        }
        const RowSums<V<T>> state{
            {load<T>(lanes[0]), load<T>(lanes[1]), load<T>(lanes[2]), load<T>(lanes[3]), load<T>(lanes[4])},
            load<T>(lanes[5]),
            load<T>(lanes[6])};
        finish_rows<T>(job, Logits<In>{rows, 1}, i, count, state);
    }
}

// The state of a block of `count` rows, finished.
template <class T, class In, class Job>
TORCHASSAY_INLINE void score_block(Job& job, const T* block, const TwoLargest<V<T>>& top, const In* const* rows,
                                   int64_t i, int count) {
    const int64_t classes = job.rows.classes;
    const RowSums<V<T>> state = lanes_state<T>(job, block, top, i, count);
    finish_rows<T>(job, Logits<In>{rows, job.rows.class_stride}, i, count, state);
    if (auto* prediction = static_cast<int64_t*>(job.out[kPrediction]))
        for (int lane = 0; lane < count; ++lane) {
            const int64_t k = column_of<T>(block, classes, lane, state.m[lane]);
            prediction[i + lane] = state.R[lane] == state.R[lane] ? k : first_nan(rows[lane], job.rows, k);
        }
}

// Rows [begin, end) of one `inner`, at least as many as there are lanes; the last ones may be computed twice.
template <class T, class In, class Job>
void score_neighbours(Job& job, int64_t begin, int64_t end, T* block) {
    constexpr int n = Simd<T>::kLanes;
    const In* const x = RowCursor<In>(job.rows, begin).next();
    for (int64_t i = begin; i < end; i += n) {
        if (i + n > end) i = end - n;
        const In* rows[n];
        for (int lane = 0; lane < n; ++lane) rows[lane] = x + (i - begin) + lane;
        const In* const next = rows_after(job.rows, rows[0], i, n);
        const auto top = gather(rows[0], next, job.rows.class_stride, job.rows.classes, block);
        score_block<T, In>(job, block, top, rows, i, n);
    }
}

template <class T, class In, class Job>
void score_rows(Job& job, int64_t begin, int64_t end, void* scratch) {
    const int64_t classes = job.rows.classes;
    if (job.rows.class_stride != 1) return score_neighbours<T, In>(job, begin, end, static_cast<T*>(scratch));
    if (classes > kInLanes) return score_states<T, In>(job, begin, end, nullptr);
    constexpr int n = Simd<T>::kLanes;
    alignas(64) T block[kInLanes * n];  // kInLanes is a multiple of four
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
        score_block<T, In>(job, block, lanes_top(block, classes), rows, i, count);
    }
}

template <class T, class In, class Job>
void score_segment(const Job& job, int64_t row, int64_t segment, Segment* out) {
    const Span<In> span = span_of<T, In>(job, RowCursor<In>(job.rows, row).next(), segment);
    const TwoLargest<T> top = top_of<T, In>(span);
    *out = sums_of<T, In>(job, row, span, top, logit_of(job, second_of(top)));
}

}  // namespace
}  // namespace torchassay
