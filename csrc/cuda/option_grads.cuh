// Gradients under options, by the kernel of row_grads.cuh with terms of its own:
//
//     dx_j = slope_j / temperature (gL (beta p_j - b_j) + gH p_j (a_j - mu)),   a_j = (m - v_j) / temperature
//
// In the entry of the top class, rest - beta (1 - p_k), nothing cancels where p_k is near 1. Of a slice without the top
// no logit is that far above u; a label of another slice is no class here, but its row has a gradient.
#pragma once
#include "options.cuh"
#include "row_grads.cuh"

namespace torchassay {

template <bool kCapped>
struct OptionGradTask : GradTask {
    static constexpr int kBlocks = kCapped ? 3 : 4;  // the registers of the tanh

    OptionsOnDevice options;
};

// What a row's gradient is made of.
struct OptionTerms {
    float u, half;  // point of reference; the logit of the top class lies more than `half` above it, no other does
    float g;        // (m - u) / temperature
    float c, w;     // p of the top class; factor of e^((v_j - u) / temperature) for the others
    float gL, gH;   // upstream over temperature
    float mu, beta;
    float top, top_b;  // the top's beta p_k - b_k is top - top_b b_k
    Inverse<float> inverse;
    Scale scale;
    int64_t row;
    int y;               // the label's column; -1: it has none here
    float label_weight;  // what a label adds to b
    uint32_t keep;       // 0 for a row that is ignored and has no gradient of the entropy: it is 0 even if poisoned

    template <bool kMend>
    TORCHASSAY_DEVICE float entry(const Capped& logit, float b) const {
        const float difference = logit.v - u;
        const bool is_top = difference > half;
        float d = smaller_or_nan(difference, 0.0f);
        const float p = exp_of<kMend>(d, scale) * w;
        const float of_loss = is_top ? fused(-top_b, b, top) : fused(beta, p, -b);
        const float a = is_top ? 0.0f : fused(-d, inverse.high, g);
        return fused(gL, of_loss, gH * (is_top ? c : p) * (a - mu)) * logit.slope;
    }
};

template <bool kCapped>
TORCHASSAY_DEVICE OptionTerms terms_of(const OptionGradTask<kCapped>& task, int64_t row) {
    const int64_t n = task.rows.count;
    const float* stats = simt::computed(task.stats + row);
    const float m = simt::load(stats), u = simt::load(stats + n), z = simt::load(stats + 2 * n);
    const float r = simt::load(stats + 3 * n), rest = simt::load(stats + 4 * n);
    const bool lone = u == -TORCHASSAY_INFINITY;
    OptionTerms t{};
    t.row = row;
    t.y = -1;
    t.u = lone ? m : u;  // without a rest the top is its own point of reference
    t.half = lone ? -3e38f : smaller_or_nan(0.5f * (m - u), 3e38f);
    t.c = 1.0f / (1.0f + r);
    t.w = z * t.c;
    t.inverse = inverse_of(task.options, row);
    t.scale = scale_of(task.options, row);
    t.g = smaller_or_nan((m - t.u) * t.inverse.high, 128.0f);  // z is 0 from 88 on: no inf * 0
    t.gL = upstream_of(task.grad_loss, row) * t.inverse.high;
    t.gH = upstream_of(task.grad_entropy, row) * t.inverse.high;
    t.mu = simt::load(stats + 5 * n);
    t.beta = simt::load(stats + 6 * n);
    t.top = t.c > 0.5f ? rest - t.beta * (r * t.c) : t.beta * t.c;
    t.top_b = t.c > 0.5f ? 0.0f : 1.0f;
    t.keep = ~0u;
    if (!task.grad_loss.data || task.options.probabilities) return t;
    const int64_t y = target_of(task.targets, row);
    if (y == task.targets.ignore_index) {
        t.gL = 0.0f;
        if (!task.grad_entropy.data) return {};
    } else if (y < 0 || y >= task.targets.total) {
        t.c = t.w = t.top = TORCHASSAY_INFINITY - TORCHASSAY_INFINITY;
    } else if (y >= task.targets.first && y - task.targets.first < task.rows.classes) {
        t.y = int(y - task.targets.first);
        t.label_weight = label_weight(task.options, t.y);
    }
    return t;
}

// The gradients of elements [begin, end) of a vector whose element 0 is column `column` of the row.
template <class In, bool kCapped>
TORCHASSAY_DEVICE void fill(float (&g)[kVector<In>], const OptionGradTask<kCapped>& task, const OptionTerms& t,
                            const Words& x, int column, int begin, int end) {
    const Words kept{{x.word[0] & t.keep, x.word[1] & t.keep, x.word[2] & t.keep, x.word[3] & t.keep}};
    const int at = t.y < 0 ? -1 : t.y - column;
#pragma unroll
    for (int i = 0; i < kVector<In>; ++i) {
        if (i < begin || i >= end) continue;
        float b = task.grad_loss.data ? spread_entry(task.options, t.row, column + i, task.rows.classes) : 0.0f;
        if (i == at) b += t.label_weight;
        g[i] = t.entry<Packed<In>::kMend>(capped<kCapped>(task.options, element<In>(kept, i)), b);
    }
}

template <class In, class Launch>
void grad_rows_with_options(const Rows& rows, const Targets& targets, const Options& options, const void* stats,
                            const Upstream& grad_loss, const Upstream& grad_entropy, void* out, const Launch& launch) {
    GradTask task = grad_task_of(rows, targets, stats, grad_loss, grad_entropy, out);
    if (task.targets.total == 0) task.targets.total = rows.classes;
    const OptionsOnDevice on = on_device(options, task.targets.total);
    if (options.softcap > 0.0)
        launch_grads<In>(rows, OptionGradTask<true>{task, on}, launch);
    else
        launch_grads<In>(rows, OptionGradTask<false>{task, on}, launch);
}

}  // namespace torchassay
