// Scores of samples whose head is no softmax: one read of the outputs and their targets.
//
// One to 32 neighbouring lanes share a sample, by the number of its outputs; a lane takes every lanes-th of them.
#pragma once
#include "reduce.cuh"

namespace torchassay {

TORCHASSAY_DEVICE float absolute(float x) { return larger(x, -x); }

}  // namespace torchassay

#include "../head_stats.h"

namespace torchassay {

constexpr int kOutputsOfLane = 8;  // more are shared with another lane: neighbours must read what lies together
constexpr int kGroup = 16;         // outputs of a lane that are summed before they join the others

struct HeadsOnDevice {
    RowsOnDevice rows;
    const float* target;
    int64_t target_stride;
    const float* pos_weight;
    Head head;
    float delta;
    int lanes;
    float* out[kGradNorm + 1];
};

struct Added {
    TORCHASSAY_DEVICE float operator()(float a, float b) const { return a + b; }
};

// log(1 + e) = 2 artanh(s) for e in [0, 1], s = e / (2 + e); minimax in s^2, exact for tiny e.
TORCHASSAY_DEVICE float log1p_of_unit(float e) {
    const float s = e * simt::reciprocal_fast(2.0f + e), s2 = s * s;
    float series = 0.28011987f;
    series = fused(series, s2, 0.28001806f);
    series = fused(series, s2, 0.40021527f);
    series = fused(series, s2, 0.6666642f);
    return s * fused(series, s2, 2.0f);
}

TORCHASSAY_DEVICE HeadTerms<float> binary_terms(float x, float y, float w) {
    const float a = magnitude(x);
    float d = -0.5f * a;
    const float root = exp_of<true>(d), e = root * root;  // so that it underflows by and by
    return binary_terms(x, y, w, a, e, simt::reciprocal_fast(1.0f + e), log1p_of_unit(e));
}

template <class In, bool kBinary>
TORCHASSAY_DEVICE void score_samples(const HeadsOnDevice& task) {
    const int lanes = task.lanes, outputs = task.rows.classes, member = simt::thread_index() & (lanes - 1);
    const int64_t own = (simt::block_index() * kThreads + simt::thread_index()) / lanes;
    const int64_t sample = own < task.rows.count ? own : task.rows.count - 1;  // all lanes meet in the shuffles
    const In* x = row_start<In>(task.rows, sample);
    const float* y = task.target + sample * task.target_stride;
    HeadSums<float> sums;
    for (int j = member; j < outputs;) {
        HeadSums<float> group;
        const int end = outputs - j > kGroup * lanes ? j + kGroup * lanes : outputs;
#pragma unroll 4
        for (; j < end; j += lanes) {
            const float logit = load_logit(x + j), target = simt::load(y + j);
            if constexpr (kBinary)
                add<float>(group,
                           binary_terms(logit, target, task.pos_weight ? simt::load(task.pos_weight + j) : 1.0f));
            else
                add<float>(group, regression_terms(task.head, logit, target, task.delta));
        }
        sums = {sums.loss + group.loss, sums.entropy + group.entropy, sums.low + group.low, sums.middle + group.middle,
                sums.high + group.high};
    }
    sums = {reduce_in_warp(sums.loss, lanes, Added{}), reduce_in_warp(sums.entropy, lanes, Added{}),
            reduce_in_warp(sums.low, lanes, Added{}), reduce_in_warp(sums.middle, lanes, Added{}),
            reduce_in_warp(sums.high, lanes, Added{})};
    if (member != 0 || own >= task.rows.count) return;
    if (task.out[kLoss]) task.out[kLoss][own] = sums.loss;
    if (task.out[kEntropy]) task.out[kEntropy][own] = sums.entropy;
    if (task.out[kGradNorm]) task.out[kGradNorm][own] = grad_norm_of<float>(sums);
}

template <class In>
__global__ void __launch_bounds__(kThreads) binary_samples(HeadsOnDevice task) {
    score_samples<In, true>(task);
}

template <class In>
__global__ void __launch_bounds__(kThreads) regression_samples(HeadsOnDevice task) {
    score_samples<In, false>(task);
}

template <class In, class Launch>
void score_heads(const HeadTask& task, const Launch& launch) {
    HeadsOnDevice heads{on_device(task.rows),
                        static_cast<const float*>(task.target),
                        task.target_stride,
                        static_cast<const float*>(task.pos_weight),
                        task.head,
                        float(task.delta),
                        1,
                        {}};
    while (heads.lanes < 32 && heads.lanes * kOutputsOfLane < task.rows.classes) heads.lanes *= 2;
    for (int i = 0; i <= kGradNorm; ++i) heads.out[i] = static_cast<float*>(task.out[i]);
    const int64_t samples_of_block = kThreads / heads.lanes;
    const int64_t blocks = (task.rows.count() + samples_of_block - 1) / samples_of_block;
    launch(task.head == Head::kBinary ? binary_samples<In> : regression_samples<In>, blocks, kThreads, heads);
}

}  // namespace torchassay
