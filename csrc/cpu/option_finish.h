// What `lanes` rows under options are finished with, swept or not.
#pragma once
#include "row_output.h"

namespace torchassay {
namespace {

// The labels of `count` rows: their logits, the weight of each and the part of its class in what is spread over all,
// and which are to be counted.
template <class T>
struct OwnLabels {
    V<T> x_y{}, weight{}, spread{};
    typename Simd<T>::I counted{};
};
template <class T, class LogitOf>
TORCHASSAY_INLINE OwnLabels<T> look_up_labels(OptionJob& job, const LogitOf& logit_of, int64_t i, int count) {
    OwnLabels<T> found;
    look_up<T>(job, logit_of, i, count, &found.x_y, &found.counted);
    T weight[Simd<T>::kLanes] = {}, spread[Simd<T>::kLanes] = {};
    const T kept = T(1 - job.options.label_smoothing);
    for (int lane = 0; lane < count; ++lane) {
        const int64_t y = target_at(job.targets, i + lane);
        const bool inside = y >= 0 && y < job.rows.classes;
        const T w = job.options.weight && inside ? static_cast<const T*>(job.options.weight)[y] : T(1);
        weight[lane] = inside ? kept * w : T(NAN);
        if (job.spread && inside) spread[lane] = static_cast<const T*>(job.spread)[y];
    }
    found.weight = load<T>(weight), found.spread = load<T>(spread);
    return found;
}

template <class T>
TORCHASSAY_INLINE void write_stats(const ScoreJob& job, int64_t i, int count, const Finished<V<T>>& f, V<T> u, V<T> mu,
                                   V<T> rest, V<T> beta) {
    const V<T> stats[7] = {f.m, u, f.z, f.r, rest, mu, beta};
    for (int q = 0; q < 7; ++q) write<T>(job.out[kStats], q * job.rows.count() + i, count, stats[q]);
}

}  // namespace
}  // namespace torchassay
