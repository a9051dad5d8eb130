// From the state of a row to its signals under options, in the one lane that finishes it.
#pragma once
#include "options.cuh"
#include "row_output.cuh"

namespace torchassay {

// What a score kernel is launched with.
struct OptionTask : ScoreTask {
    OptionsOnDevice options;
};

TORCHASSAY_DEVICE Scale scale_of(const OptionTask& task, int64_t row) { return scale_of(task.options, row); }

TORCHASSAY_DEVICE void write_option_row(const OptionTask& task, int64_t row, const Finished<float>& f,
                                        const RowState<float>& state, const Target& target, const Labelled<float>& l,
                                        const LinearLoss<float>& loss, float norm, int prediction) {
    const float mu = entropy_offset(f, state), margin = margin_of(f, state, TORCHASSAY_INFINITY);
    write_unlabelled(task, row, f, state, mu, margin, prediction);
    float rest = 0.0f, beta = 0.0f;
    if (task.targets.data || task.options.probabilities) {
        rest = select(target.known, loss.rest, target.unknown);
        beta = select(target.known, loss.beta, target.unknown);
        put(task, kLoss, row, select(target.known, loss.loss, target.unknown));
        put(task, kGradNorm, row, select(target.known, norm, target.unknown));
        put(task, kTargetMargin, row, select(target.known, target_margin_of(f, l, margin), target.unknown));
    }
    if (task.out[kStats]) {
        const int64_t n = task.rows.count;
        const float stats[7] = {f.m, state.u, f.z, f.r, rest, mu, beta};
#pragma unroll
        for (int q = 0; q < 7; ++q) put(task, kStats, q * n + row, stats[q]);
    }
}

// The norm of a label's gradient, without the factor of the temperature, where nothing is spread over other classes.
TORCHASSAY_DEVICE float norm_of(const OptionsOnDevice& options, const Finished<float>& f, const RowState<float>& state,
                                const Labelled<float>& l, float weight) {
    if (options.z_loss != 0.0f) return label_norm(f, state, l, weight, 2.0f * options.z_loss * f.lse);
    return weight * grad_norm_of(f, state, l);
}

// Where no more is asked for than a temperature, class weights and a z-loss. T is in units of the logits here.
TORCHASSAY_DEVICE void write_row(const OptionTask& task, int64_t row, const RowState<float>& sums, const Target& target,
                                 int prediction) {
    const float infinity = TORCHASSAY_INFINITY;
    const Inverse<float> inverse = inverse_of(task.options, row);
    const RowState<float> state{sums.m, sums.u, sums.R, sums.T * inverse.high, sums.Q};
    const Finished<float> f = finish(state, inverse, infinity);
    const Labelled<float> l = label(f, target.logit, inverse, infinity);
    const float weight = target.known ? label_weight(task.options, target.y) : 0.0f;
    const LinearLoss<float> loss = linear_loss(f, add_label({0.0f, 0.0f, 0.0f}, f, l, weight), task.options.z_loss);
    const float norm = inverse.high * norm_of(task.options, f, state, l, weight);
    write_option_row(task, row, f, state, target, l, loss, norm, prediction);
}

}  // namespace torchassay
