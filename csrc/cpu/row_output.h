// What becomes of `lanes` finished rows at once: their targets looked up, their signals written.
#pragma once
#include "row_sums.h"

namespace torchassay {
namespace {

// As torch.argmax: the first NaN of a row that has one, else k. R is NaN for two classes at +inf too.
template <class In>
int64_t first_nan(const In* row, const Rows& rows, int64_t k) {
    int64_t j = 0;
    while (j < rows.classes && widen(row[j * rows.class_stride]) == widen(row[j * rows.class_stride])) ++j;
    return j < rows.classes ? j : k;
}

template <class T>
TORCHASSAY_INLINE void write(void* out, int64_t i, int count, V<T> v) {
    T* p = static_cast<T*>(out) + i;
    if (count == Simd<T>::kLanes)
        store<T>(p, v);
    else
        std::memcpy(p, &v, count * sizeof(T));
}

// The logit of a class of one of `lanes` rows.
template <class In>
struct Logits {
    const In* const* rows;
    int64_t class_stride;
    TORCHASSAY_INLINE auto operator()(int lane, int64_t y) const { return widen(rows[lane][y * class_stride]); }
};

// The targets of `count` rows: their logits (NaN where out of range), and which are to be counted.
template <class T, class LogitOf>
TORCHASSAY_INLINE void look_up(ScoreJob& job, const LogitOf& logit_of, int64_t i, int count, V<T>* x_y,
                               typename Simd<T>::I* counted) {
    T value[Simd<T>::kLanes] = {};
    typename Simd<T>::Int flag[Simd<T>::kLanes] = {};
    for (int lane = 0; lane < count; ++lane) {
        const int64_t y = target_at(job.targets, i + lane);
        const bool ignored = y == job.targets.ignore_index, inside = y >= 0 && y < job.rows.classes;
        flag[lane] = ignored ? 0 : -1;
        value[lane] = inside ? logit_of(lane, y) : T(NAN);
        if (__builtin_expect(!inside && !ignored, 0)) {
            int64_t first = job.bad_row.load();
            while (i + lane < first && !job.bad_row.compare_exchange_weak(first, i + lane)) {
            }
        }
    }
    std::memcpy(x_y, value, sizeof(value));
    std::memcpy(counted, flag, sizeof(flag));
}

// Writes what needs no target; returns what the rest is made of besides.
template <class T>
struct Unlabelled {
    V<T> mu{}, margin{};
};
template <class T>
TORCHASSAY_INLINE Unlabelled<T> write_unlabelled(const ScoreJob& job, int64_t i, int count, const Finished<V<T>>& f,
                                                 const RowState<V<T>>& state) {
    Unlabelled<T> found;
    if (job.wants(kEntropy)) {
        found.mu = entropy_offset(f, state);
        write<T>(job.out[kEntropy], i, count, f.log_c + found.mu);
    }
    if (job.wants(kLse)) write<T>(job.out[kLse], i, count, f.lse);
    if (job.wants(kConfidence)) write<T>(job.out[kConfidence], i, count, f.c);
    if (job.wants(kLeastConfidence)) write<T>(job.out[kLeastConfidence], i, count, f.r * f.c);
    if (job.wants(kMargin) || job.wants(kTargetMargin)) found.margin = margin_of(f, state, splat<V<T>>(INFINITY));
    if (job.wants(kMargin)) write<T>(job.out[kMargin], i, count, found.margin);
    if (job.wants(kGini)) write<T>(job.out[kGini], i, count, gini_of(f, state));
    return found;
}

}  // namespace
}  // namespace torchassay
