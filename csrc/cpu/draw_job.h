// The noise of a draw: what is added to a row of logits, or to a row in each lane.
#pragma once
#include "kernels.h"
#include "vec_random.h"

namespace torchassay {
namespace {

template <class T>
TORCHASSAY_INLINE T number_at(const Number& number, int64_t row) {
    return number.data ? static_cast<const T*>(number.data)[row] : T(number.value);
}

TORCHASSAY_INLINE int64_t id_at(const Draws& draws, int64_t row) { return draws.row_id ? draws.row_id[row] : row; }

template <class T>
struct Noise {
    using V = typename Simd<T>::V;
    RandomRows rows;
    V top{}, std{}, scale{};

    // Of one row, in every lane.
    TORCHASSAY_INLINE Noise(const DrawJob& job, int64_t row)
        : rows(job.key, uint32_t(Purpose::kLogitNoise), id_at(job.draws, row)) {
        if (!job.draws.top) return;
        top = splat<V>(static_cast<const T*>(job.draws.top)[row]);
        std = splat<V>(number_at<T>(job.draws.std, row));
        scale = splat<V>(number_at<T>(job.draws.scale, row));
    }
    // Of `count` rows; the lanes past them are anything.
    TORCHASSAY_INLINE Noise(const DrawJob& job, int64_t first, int count) : rows(job.key, 0, int64_t(0)) {
        if (!job.draws.top) return;
        constexpr int n = Simd<T>::kLanes;
        int64_t ids[n] = {};
        for (int lane = 0; lane < count; ++lane) {
            ids[lane] = id_at(job.draws, first + lane);
            top[lane] = static_cast<const T*>(job.draws.top)[first + lane];
            std[lane] = number_at<T>(job.draws.std, first + lane);
            scale[lane] = number_at<T>(job.draws.scale, first + lane);
        }
        rows = RandomRows(job.key, uint32_t(Purpose::kLogitNoise), ids);
    }
    TORCHASSAY_INLINE V add(V x, V normals) const { return fused(std, normals, x - top) * scale; }
};

}  // namespace
}  // namespace torchassay
