// The states of rows of which a slice of the classes is at hand: the walks of plain rows, whose sums are kept as they
// are.
#include "row_output.h"
#include "slices.h"

namespace torchassay {
namespace {

template <class T, class Call>
TORCHASSAY_INLINE auto by_sums(const StateJob& job, int64_t i, int count, const Call& call) {
    const Wanted<true, true> both;
    if (job.capped()) return call(both, Capped<T>{softcap_of<T>(job), inverse_of<T>(job, i, count).high});
    if (!job.options.temperature.data && job.inverse == 1) return call(both, Unscaled{});
    return call(both, Scaled<T>{inverse_of<T>(job, i, count).high});
}

// sum b_j (v_u - v_j) over the classes of a row, to which the top adds nothing.
template <class T, class Logits>
double gap_of(const StateJob& job, const Logits& logits, int lane, T m, T u) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t classes = job.rows.classes;
    const T* const b = static_cast<const T*>(job.spread);
    const V<T> zero{}, raw = splat<V<T>>(u != -INFINITY ? u : m != -INFINITY ? m : T(0));
    const V<T> reference = logit_of(job, raw);
    double sum = 0;
    for (int64_t j = 0; j < classes;) {
        V<T> part{};
        for (const int64_t stop = j + 32 * n; j < stop && j < classes; j += n) {
            T apart[n] = {};
            const int count = int(classes - j < n ? classes - j : n);
            for (int c = 0; job.rows.class_stride != 1 && c < count; ++c) apart[c] = logits(lane, j + c);
            const V<T> x = job.rows.class_stride != 1 ? load<T>(apart)
                           : count == n               ? load<T>(logits.rows[lane] + j)
                                                      : load_tail<T>(logits.rows[lane] + j, count);
            const V<T> d = min_or_second(zero, logit_of(job, x) - reference), weight = load<T>(b + j);
            part += weight == 0 ? zero : weight * d;
        }
        for (int c = 0; c < n; ++c) sum -= double(part[c]);
    }
    return sum;
}

template <class T, class Logits>
TORCHASSAY_INLINE void finish_rows(StateJob& job, const Logits& logits, int64_t i, int count,
                                   const RowSums<V<T>>& sums) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t rows = job.rows.count();
    V<T> S = sums.Q;
    if (job.capped()) {  // at a tie the top is in S
        const V<T> x[2] = {sums.m, sums.u};
        V<T> v[2], slope[2];
        softcap_of<T>(job)(x, v, slope);
        S = v[0] == v[1] && sums.u != -INFINITY ? sums.S - slope[0] * slope[0] : sums.S;
    }
    T x_y[n] = {};
    for (int lane = 0; job.targets.data && lane < count; ++lane) {
        const int64_t column = column_at(job.targets, job.rows.classes, i + lane);
        if (column >= 0) x_y[lane] = logits(lane, column);
    }
    const V<T> numbers[kStateNumbers] = {sums.m, sums.u, sums.R, sums.T, sums.Q, S, load<T>(x_y)};
    for (int q = 0; q < kStateNumbers; ++q) write<T>(job.to.numbers, q * rows + i, count, numbers[q]);
    if (!job.to.smoothed) return;
    T* const gap = static_cast<T*>(job.to.numbers) + 8 * rows + i;
    for (int lane = 0; lane < count; ++lane) gap[lane] = T(gap_of<T>(job, logits, lane, sums.m[lane], sums.u[lane]));
}

template <class T>
void merge_rows(const FinishJob& job, const States& to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const Slice s = joined_slices<T>(job, i);
        const double numbers[kSmoothedNumbers] = {s.m, s.u, s.R, s.T, s.Q, s.S, s.x_y, s.rest, s.gap, s.top};
        for (int q = 0; q < (to.smoothed ? kSmoothedNumbers : kStateNumbers); ++q)
            static_cast<T*>(to.numbers)[q * job.from.count + i] = T(numbers[q]);
        to.k[i] = s.k;
    }
}

}  // namespace
}  // namespace torchassay
// after finish_rows, which it calls
#include "row_walks.h"

namespace torchassay {
namespace TORCHASSAY_ISA {
void state_rows_any(StateJob& job, int64_t begin, int64_t end, void* scratch) {
    TORCHASSAY_BY_DTYPE(score_rows, begin, end, scratch)
}
void state_segment_any(const StateJob& job, int64_t row, int64_t segment, Segment* out) {
    TORCHASSAY_BY_DTYPE(score_segment, row, segment, out)
}
void state_states_any(StateJob& job, int64_t begin, int64_t end, const Segment* states) {
    TORCHASSAY_BY_DTYPE(score_states, begin, end, states)
}
void merge_states_any(const FinishJob& job, const States& to, int64_t begin, int64_t end) {
    if (job.from.wide)
        merge_rows<double>(job, to, begin, end);
    else
        merge_rows<float>(job, to, begin, end);
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
