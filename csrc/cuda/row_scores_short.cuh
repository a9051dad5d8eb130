// Rows of up to kShort columns: read once into registers, the two largest first, then the sums.
//
// 1 to 32 lanes share a row, so that each has at most 64 bytes (128 in float32) of it; a warp takes several rows at a
// time and up to 32 in all. A row's finish is as long as the sums of 1000 columns would be if all lanes ran it: the
// finished states are gathered in shared memory and one lane finishes one row.
#pragma once
#include "reduce.cuh"
#include "row_output.cuh"

namespace torchassay {

constexpr int kShort = 1024;
constexpr int kColumnsOfLane = 32;

// The largest and the second largest, which equals it at a tie.
struct Tops {
    float m, u;
};

TORCHASSAY_DEVICE Tops join(const Tops& a, const Tops& b) {
    return {larger(a.m, b.m), larger(smaller(a.m, b.m), larger(a.u, b.u))};
}

template <class In, Unit kUnit, class Task>
__global__ void __launch_bounds__(kThreads, sizeof(In) == 4 ? 2 : 3) short_rows(Task task, int log_lanes, int steps) {
    constexpr int kVectors = kColumnsOfLane / kVector<In>;
    using P = Packed<In>;
    const int lane = simt::thread_index() % 32, warp = simt::thread_index() / 32;
    const int lanes = 1 << log_lanes, groups = 32 >> log_lanes;
    const int member = lane & (lanes - 1), group = lane >> log_lanes;
    const int64_t first = (simt::block_index() * (kThreads / 32) + warp) * (steps * groups);
    const int64_t own = first + lane;  // the row that this lane finishes
    const int64_t last = task.rows.count - 1;
    const bool finishes = lane < steps * groups && own <= last;
    const int classes = task.rows.classes;
    __shared__ simt::Shared<float, kThreads * 5> states;
    __shared__ simt::Shared<int, kThreads> predictions;

    Target target{};
    if (finishes) target = look_up(task, row_start<In>(task.rows, own), own);
    for (int step = 0; step < steps; ++step) {
        const int slot = step * groups + group;
        const int64_t row = first + slot < last ? first + slot : last;  // beyond the last row: that one again
        const In* start = row_start<In>(task.rows, row);
        const auto scale = scale_of(task, row);
        const In* p = simt::computed(start + member * kVector<In>);
        const int shift = shift_of(start), left = classes - member * kVector<In>, pitch = kVector<In> << log_lanes;
        Vector<In, kUnit> fetched[kVectors];
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            if (left > v * pitch)
                fetched[v].fetch(p + v * pitch, shift, left - v * pitch);
            else
                fetched[v].fetch_nothing();
        }
        Words x[kVectors];
        uint32_t m = P::kMinusInfinity, u = P::kMinusInfinity;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            x[v] = fetched[v].settle(shift, left - v * pitch);
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                u = P::larger(u, P::smaller(m, x[v].word[q]));
                m = P::larger(m, x[v].word[q]);
            }
        }
        Tops tops{P::part(m, 0), P::part(u, 0)};
        if (kPerWord<In> == 2) tops = join(tops, {P::part(m, 1), P::part(u, 1)});
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2)
            if (mask < lanes) tops = join(tops, {simt::shuffle_xor(tops.m, mask), simt::shuffle_xor(tops.u, mask)});

        // Relative to u, the top clamped to it: it adds e^0 = 1, which is exact, and is taken off again. A class at
        // -inf adds 0, also where there is no other.
        const float reference = larger(tops.u, P::kLowest);
        const uint32_t ceiling = P::splat(reference);
        Sums sums{0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            Words below;
#pragma unroll
            for (int q = 0; q < 4; ++q) below.word[q] = P::smaller_or_nan(x[v].word[q], ceiling);
            add_columns<In, P::kMend>(sums, below, reference, scale);
        }
        sums = sum_in_warp(sums, lanes);
        if (task.out[kPrediction]) {
            // the lowest column of the top; a NaN goes before every number
            constexpr int before = -(1 << 30);
            int k = kNoColumn;
#pragma unroll
            for (int v = 0; v < kVectors; ++v) {
#pragma unroll
                for (int i = 0; i < kVector<In>; ++i) {
                    const float logit = element<In>(x[v], i);
                    const int column = member * kVector<In> + v * pitch + i;
                    const int key = logit != logit ? column + before : logit == tops.m ? column : kNoColumn;
                    k = Smaller{}(k, column < classes ? key : kNoColumn);
                }
            }
            k = reduce_in_warp(k, lanes, Smaller{});
            if (member == 0) predictions.write(warp * 32 + slot, k < 0 ? k - before : k);
        }
        if (member == 0) {
            const float state[5] = {tops.m, tops.u, sums.R - 1.0f, sums.T, sums.Q - 1.0f};
#pragma unroll
            for (int q = 0; q < 5; ++q) states.write(q * kThreads + warp * 32 + slot, state[q]);
        }
    }
    simt::sync_warp();
    if (!finishes) return;
    float state[5];
#pragma unroll
    for (int q = 0; q < 5; ++q) state[q] = states.read(q * kThreads + simt::thread_index());
    const int prediction = task.out[kPrediction] ? predictions.read(simt::thread_index()) : 0;
    write_row(task, own, {state[0], state[1], state[2], state[3], state[4]}, target, prediction);
}

}  // namespace torchassay
