// What share of a window lies below each value, counted one by one: no sort, no atomics, and the window is read in
// whatever order it is in.
//
// A warp, or for a long window a block, takes a few values; its lanes stride over the window with loads of 16 bytes and
// add up what they counted. A float32 holds the counts, whole numbers below 2^24, exactly: the same bits in any order,
// and a comparison makes the 1.0 or 0.0 to add in one instruction.
#pragma once
#include "../api.h"
#include "reduce.cuh"

namespace torchassay {

constexpr int kValuesAtOnce = 8;
constexpr int64_t kWindowOfWarp = 2048;  // a longer window is counted by a block

struct CdfTask {
    Window window;
    Values values;
    bool midrank;
    float* out;
};

// Adds 1 for the values that an entry is below; kMidrank: 2, and 1 for those that it is equal to.
template <bool kMidrank>
TORCHASSAY_DEVICE void count_entry(float entry, const float (&value)[kValuesAtOnce], float (&found)[kValuesAtOnce]) {
#pragma unroll
    for (int k = 0; k < kValuesAtOnce; ++k) {
        found[k] += entry < value[k] ? 1.0f : 0.0f;
        if constexpr (kMidrank) found[k] += entry <= value[k] ? 1.0f : 0.0f;
    }
}

// A lane's part of the first `count` entries.
template <int kLanes, bool kMidrank>
TORCHASSAY_DEVICE void count_window(const float* window, int count, int lane, const float (&value)[kValuesAtOnce],
                                    float (&found)[kValuesAtOnce]) {
    const int vectors = count / 4;
#pragma unroll 2
    for (int i = lane; i < vectors; i += kLanes) {
        const simt::Words entries = simt::load_16(window + 4 * i);
#pragma unroll
        for (int q = 0; q < 4; ++q) count_entry<kMidrank>(as_float(entries.word[q]), value, found);
    }
    if (lane < count - 4 * vectors) count_entry<kMidrank>(simt::load(window + 4 * vectors + lane), value, found);
}

// Over the lanes of a warp, of value lane % 8: each time half of the values go to the lane across.
TORCHASSAY_DEVICE float sum_of_own(float (&found)[kValuesAtOnce], int lane) {
#pragma unroll
    for (int half = kValuesAtOnce / 2; half > 0; half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (int k = 0; k < half; ++k) {
            const float kept = upper ? found[k + half] : found[k], given = upper ? found[k] : found[k + half];
            found[k] = kept + simt::shuffle_xor(given, half);
        }
    }
    float sum = found[0];
#pragma unroll
    for (int step = kValuesAtOnce; step < 32; step *= 2) sum += simt::shuffle_xor(sum, step);
    return sum;
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads) cdf_values(CdfTask task) {
    const int lane = simt::thread_index() % kLanes;
    const int64_t group = simt::block_index() * (kThreads / kLanes) + simt::thread_index() / kLanes;
    const int64_t first = group * kValuesAtOnce, values = task.values.count;
    if (first >= values) return;
    const int64_t total = simt::load(task.window.total);
    const int count = int(total < task.window.capacity ? total : task.window.capacity);

    float value[kValuesAtOnce];
    float found[kValuesAtOnce] = {};
#pragma unroll
    for (int k = 0; k < kValuesAtOnce; ++k) {
        const int64_t i = first + k < values ? first + k : values - 1;
        value[k] = simt::load(task.values.data + i * task.values.stride);
    }
    if (task.midrank)
        count_window<kLanes, true>(task.window.data, count, lane, value, found);
    else
        count_window<kLanes, false>(task.window.data, count, lane, value, found);

    float own = sum_of_own(found, lane);
    if constexpr (kLanes > 32) {
        constexpr int warps = kLanes / 32;
        __shared__ simt::Shared<float, warps * kValuesAtOnce> parts;
        if (lane % 32 < kValuesAtOnce) parts.write(lane / 32 * kValuesAtOnce + lane % 32, own);
        simt::sync_block();
        own = 0.0f;
        if (lane < kValuesAtOnce)
            for (int i = 0; i < warps; ++i) own += parts.read(i * kValuesAtOnce + lane);
    }
    if (lane >= kValuesAtOnce || first + lane >= values) return;
    const float below = count > 0 ? own / float(task.midrank ? 2 * count : count) : 1.0f;
    const float own_value = simt::load(task.values.data + (first + lane) * task.values.stride);
    task.out[first + lane] = own_value == own_value ? below : own_value;
}

template <class Launch>
void share_below(const Window& window, const Values& values, bool midrank, float* out, const Launch& launch) {
    const CdfTask task{window, values, midrank, out};
    const int64_t groups = (values.count + kValuesAtOnce - 1) / kValuesAtOnce;
    if (window.capacity > kWindowOfWarp) return launch(cdf_values<kThreads>, groups, kThreads, task);
    constexpr int64_t per_block = kThreads / 32;
    launch(cdf_values<32>, (groups + per_block - 1) / per_block, kThreads, task);
}

}  // namespace torchassay
