// Several draws of short rows, one row in each lane: see rows_in_lanes.h.
#pragma once
#include "draw_job.h"
#include "rows_in_lanes.h"

namespace torchassay {
namespace {

// y = a draw of the rows in block x, minus their tops. One block of words serves columns j, j + 8, j + 16 and j + 24.
TORCHASSAY_INLINE void add_noise(const float* x, int64_t classes, const Noise<float>& noise, uint32_t draw, float* y) {
    constexpr int n = Simd<float>::kLanes;
    for (int64_t block = 0; block / 8 * 32 < classes; ++block) {
        const int64_t j = block / 8 * 32 + block % 8;
        if (j >= classes) continue;
        const VectorWords w = random_words(noise.rows, draw, halves(uint64_t(block)));
        for (int q = 0; q < 4 && j + 8 * q < classes; q += 2) {
            F32 normals[2];
            normal_pair(w.word[q], w.word[q + 1], normals[0], normals[1]);
            for (int i = 0; i < 2; ++i) {
                const int64_t column = j + 8 * (q + i);
                if (column < classes) store<float>(y + column * n, noise.add(load<float>(x + column * n), normals[i]));
            }
        }
    }
}

// Adds e^(y - m) c of a block, padded to a multiple of four columns, to p.
TORCHASSAY_INLINE void add_probabilities(const float* y, int64_t classes, F32 m, F32 c, float* p) {
    constexpr int n = Simd<float>::kLanes;
    for (int64_t j = 0; j < classes; j += 4) {
        F32 d[4], e[4];
        for (int i = 0; i < 4; ++i) d[i] = clamp_exponent(load<float>(y + (j + i) * n) - m);
        exp_fast(d, e);
        for (int i = 0; i < 4; ++i) store<float>(p + (j + i) * n, fused(e[i], c, load<float>(p + (j + i) * n)));
    }
}

// The entropy of p / draws: as along memory.
TORCHASSAY_INLINE F32 mixture_entropy(const float* p, int64_t classes, float draws) {
    constexpr int n = Simd<float>::kLanes;
    const F32 one = splat<F32>(1);
    F32 top = splat<F32>(-INFINITY);
    for (int64_t j = 0; j < classes; ++j) top = max_or_second(load<float>(p + j * n), top);
    const float share = 1 / draws;
    F32 sum{}, logs{}, ties = -one;
    for (int64_t j = 0; j < classes;) {
        const int64_t stop = j + 16 < classes ? j + 16 : classes;  // two levels keep the error of long sums down
        F32 its_sum{}, its_logs{};
        for (; j < stop; ++j) {
            const F32 q = load<float>(p + j * n);
            const auto is_top = q == top;
            ties += select(is_top, one, F32{});
            const F32 rest = select(is_top, F32{}, q * share);
            its_sum += rest;
            its_logs = fused(rest, log_nonnegative(rest), its_logs);
        }
        sum += its_sum;
        logs += its_logs;
    }
    const F32 p_k = top * share, s = fused(ties, p_k, sum), r = s / p_k;
    return p_k * log1p_nonnegative(r, one / (one + r)) - fused(ties * p_k, log_nonnegative(p_k), logs);
}

template <class In, bool kNoise>
TORCHASSAY_INLINE void draws_in_lanes(const DrawJob& job, int64_t begin, int64_t end) {
    constexpr int n = Simd<float>::kLanes;
    const int64_t classes = job.rows.classes, count = job.draws.count, padded = (classes + 3) / 4 * 4;
    const F32 infinity = splat<F32>(INFINITY);
    alignas(64) float x[kInLanes * n], y[kInLanes * n], p[kInLanes * n];
    for (int64_t j = classes; j < padded; ++j) store<float>(y + j * n, -infinity);
    RowCursor<In> cursor(job.rows, begin);
    for (int64_t i = begin; i < end; i += n) {
        const int rows_here = int(end - i < n ? end - i : n);
        const In* rows[n];
        for (int lane = 0; lane < n; ++lane)
            rows[lane] = lane < rows_here ? cursor.next() : rows[0];  // spare lanes repeat the first row
        const Noise<float> noise(job, i, rows_here);
        if (kNoise) transpose<float, In>(rows, classes, x);
        if (job.wants_mixture()) std::memset(p, 0, padded * n * sizeof(float));
        F32 entropy{};
        for (int64_t t = 0; t < count; ++t) {
            if (kNoise) {
                add_noise(x, classes, noise, uint32_t(t), y);
            } else {
                const In* members[n];
                for (int lane = 0; lane < n; ++lane) members[lane] = rows[lane] + t * job.draws.stride;
                transpose<float, In>(members, classes, y);
            }
            const TwoLargest<F32> top = lanes_top(y, classes);
            const RowState<F32> state =
                lanes_state<float, Wanted<true, false>>(y, classes, Unscaled{}, top, second_in_lanes(top));
            const Finished<F32> f = finish(state, infinity);
            entropy += f.log_c + entropy_offset(f, state);
            if (job.wants_mixture()) add_probabilities(y, classes, f.m, f.c, p);
        }
        entropy /= float(count);
        const F32 mixture = job.wants_mixture() ? mixture_entropy(p, classes, float(count)) : F32{};
        const F32 found[kDrawSlots] = {entropy, mixture, max_or_second(F32{}, mixture - entropy)};
        for (int slot = 0; slot < kDrawSlots; ++slot)
            if (job.out[slot]) store_tail<float>(static_cast<float*>(job.out[slot]) + i, found[slot], rows_here);
    }
}

}  // namespace
}  // namespace torchassay
