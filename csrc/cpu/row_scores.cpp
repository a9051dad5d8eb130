// Scores of rows of logits on the CPU: one read of memory, two sweeps in cache.
#include "row_output.h"

namespace torchassay {
namespace {

template <class T, class LogitOf>
TORCHASSAY_INLINE void finish_rows(ScoreJob& job, const LogitOf& logit_of, int64_t i, int count,
                                   const RowSums<V<T>>& state) {
    const V<T> infinity = splat<V<T>>(INFINITY), zero{};
    const Inverse<V<T>> inverse{splat<V<T>>(1), zero};
    const Finished<V<T>> f = finish<V<T>>(state, inverse, infinity);
    const auto [mu, margin] = write_unlabelled<T>(job, i, count, f, state);
    V<T> miss{};
    if (job.targets.data) {
        V<T> x_y;
        typename Simd<T>::I counted;
        look_up<T>(job, logit_of, i, count, &x_y, &counted);
        const Labelled<V<T>> l = label(f, x_y, inverse, infinity);
        miss = counted ? l.miss : zero;
        if (job.wants(kLoss)) write<T>(job.out[kLoss], i, count, counted ? l.loss : zero);
        if (job.wants(kGradNorm))
            write<T>(job.out[kGradNorm], i, count, counted ? grad_norm_of<V<T>>(f, state, l) : zero);
        if (job.wants(kTargetMargin))
            write<T>(job.out[kTargetMargin], i, count, counted ? target_margin_of(f, l, margin) : zero);
    }
    if (job.wants(kStats)) {
        const V<T> stats[6] = {f.m, state.u, f.z, f.r, miss, mu};
        for (int q = 0; q < 6; ++q) write<T>(job.out[kStats], q * job.rows.count() + i, count, stats[q]);
    }
}

}  // namespace
}  // namespace torchassay
// after finish_rows, which it calls
#include "row_walks.h"

namespace torchassay {
namespace TORCHASSAY_ISA {
extern const int kLanes = Simd<float>::kLanes;
void score_rows_any(ScoreJob& job, int64_t begin, int64_t end, void* scratch) {
    TORCHASSAY_BY_DTYPE(score_rows, begin, end, scratch)
}
void score_segment_any(const ScoreJob& job, int64_t row, int64_t segment, Segment* out) {
    TORCHASSAY_BY_DTYPE(score_segment, row, segment, out)
}
void score_states_any(ScoreJob& job, int64_t begin, int64_t end, const Segment* states) {
    TORCHASSAY_BY_DTYPE(score_states, begin, end, states)
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
