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
    const void* input;
    int64_t count, stride;
    int outputs;
    int log2_lanes;  // lanes that share a sample
    const float* target;
    int64_t target_stride;
    const float* pos_weight;
    float delta;
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

template <class In, Head kHead>
__global__ void __launch_bounds__(kThreads) head_samples(HeadsOnDevice task) {
    const int lanes = 1 << task.log2_lanes, outputs = task.outputs, member = simt::thread_index() & (lanes - 1);
    const int64_t own = (simt::block_index() * kThreads + simt::thread_index()) >> task.log2_lanes;
    const int64_t sample = own < task.count ? own : task.count - 1;  // all lanes meet in the shuffles
    const In* x = static_cast<const In*>(task.input) + sample * task.stride;
    const float* y = task.target + sample * task.target_stride;
    HeadSums<float> sums;
    for (int j = member; j < outputs;) {
        HeadSums<float> group;
        const int end = outputs - j > kGroup * lanes ? j + kGroup * lanes : outputs;
#pragma unroll 4
        for (; j < end; j += lanes) {
            const float logit = load_logit(x + j), target = simt::load(y + j);
            if constexpr (kHead == Head::kBinary)
                add<float>(group,
                           binary_terms(logit, target, task.pos_weight ? simt::load(task.pos_weight + j) : 1.0f));
            else
                add<float>(group, regression_terms(kHead, logit, target, task.delta));
        }
        sums = {sums.loss + group.loss, sums.entropy + group.entropy, sums.low + group.low, sums.middle + group.middle,
                sums.high + group.high};
    }
    sums = {reduce_in_warp(sums.loss, lanes, Added{}), reduce_in_warp(sums.entropy, lanes, Added{}),
            reduce_in_warp(sums.low, lanes, Added{}), reduce_in_warp(sums.middle, lanes, Added{}),
            reduce_in_warp(sums.high, lanes, Added{})};
    if (member != 0 || own >= task.count) return;
    if (task.out[kLoss]) task.out[kLoss][own] = sums.loss;
    if (task.out[kEntropy]) task.out[kEntropy][own] = sums.entropy;
    if (task.out[kGradNorm]) task.out[kGradNorm][own] = grad_norm_of<float>(sums);
}

template <class In, class Launch>
void score_heads(const HeadTask& task, const Launch& launch) {
    if (task.rows.classes >= 1 << 30) throw std::runtime_error("torchassay: the CUDA kernels count outputs in 31 bits");
    HeadsOnDevice heads{task.rows.data,
                        task.rows.count(),
                        task.rows.inner_stride,
                        int(task.rows.classes),
                        0,
                        static_cast<const float*>(task.target),
                        task.target_stride,
                        static_cast<const float*>(task.pos_weight),
                        float(task.delta),
                        {}};
    while (heads.log2_lanes < 5 && kOutputsOfLane << heads.log2_lanes < heads.outputs) ++heads.log2_lanes;
    for (int i = 0; i <= kGradNorm; ++i) heads.out[i] = static_cast<float*>(task.out[i]);
    const int64_t samples_of_block = kThreads >> heads.log2_lanes;
    const int64_t blocks = (heads.count + samples_of_block - 1) / samples_of_block;
    switch (task.head) {
        case Head::kBinary:
            return launch(head_samples<In, Head::kBinary>, blocks, kThreads, heads);
        case Head::kMse:
            return launch(head_samples<In, Head::kMse>, blocks, kThreads, heads);
        case Head::kL1:
            return launch(head_samples<In, Head::kL1>, blocks, kThreads, heads);
        case Head::kHuber:
            return launch(head_samples<In, Head::kHuber>, blocks, kThreads, heads);
    }
}

}  // namespace torchassay
