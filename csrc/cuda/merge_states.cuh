// States of slices merged, and rows finished from them, a row a thread: rows are neighbours in memory.
#pragma once
#include "option_sweeps.cuh"
// after the operations it is made of
#include "../slice_stats.h"

namespace torchassay {

TORCHASSAY_DEVICE SliceState<float> load_state(const States& states, int64_t part, int64_t row) {
    const int64_t n = states.count, numbers = states.smoothed ? kSmoothedNumbers : kStateNumbers;
    const float* p = static_cast<const float*>(states.numbers) + part * numbers * n + row;
    SliceState<float> s{};
    s.m = simt::load(p), s.u = simt::load(p + n), s.R = simt::load(p + 2 * n), s.T = simt::load(p + 3 * n);
    s.Q = simt::load(p + 4 * n), s.S = simt::load(p + 5 * n), s.x_y = simt::load(p + 6 * n);
    if (states.smoothed) s.rest = simt::load(p + 7 * n), s.gap = simt::load(p + 8 * n), s.top = simt::load(p + 9 * n);
    s.k = simt::load(states.k + part * n + row);
    return s;
}

// The state of all of a row's slices, in their order.
TORCHASSAY_DEVICE SliceState<float> merged_state(const States& states, const OptionsOnDevice& options, int64_t row) {
    const Inverse<float> inverse = inverse_of(options, row);
    SliceState<float> all = load_state(states, 0, row);
    for (int64_t part = 1; part < states.parts; ++part)
        all = merge(all, load_state(states, part, row), inverse, Cap{options}, TORCHASSAY_INFINITY);
    return all;
}

static __global__ void __launch_bounds__(kThreads) merge_parts(States states, OptionsOnDevice options, States out) {
    const int64_t row = simt::block_index() * kThreads + simt::thread_index(), n = states.count;
    if (row >= n) return;
    const SliceState<float> s = merged_state(states, options, row);
    float* p = static_cast<float*>(out.numbers) + row;
    p[0] = s.m, p[n] = s.u, p[2 * n] = s.R, p[3 * n] = s.T, p[4 * n] = s.Q, p[5 * n] = s.S;
    p[6 * n] = s.x_y;
    if (out.smoothed) p[7 * n] = s.rest, p[8 * n] = s.gap, p[9 * n] = s.top;
    out.k[row] = s.k;
}

// S without the part of a label that is not the top.
TORCHASSAY_DEVICE float without_label(const OptionsOnDevice& options, const SliceState<float>& s, float u,
                                      const Labelled<float>& l, const Inverse<float>& inverse) {
    const float e = exp_difference(u, l.x_y, u - l.x_y, inverse, TORCHASSAY_INFINITY);
    const float steep = e * capped<true>(options, s.x_y).slope;
    return larger(fused(-steep, steep, s.S), 0.0f);
}

// The task's rows are those of all classes, of which no data are here; its weight is that of each row's target.
static __global__ void __launch_bounds__(kThreads) finish_parts(OptionTask task, States states) {
    const int64_t row = simt::block_index() * kThreads + simt::thread_index();
    if (row >= task.rows.count) return;
    const OptionsOnDevice& options = task.options;
    const float infinity = TORCHASSAY_INFINITY;
    const Inverse<float> inverse = inverse_of(options, row);
    const SliceState<float> s = merged_state(states, options, row);
    const Cap cap{options};
    const float m = cap(s.m).v;
    const RowState<float> state{m, smaller(cap(s.u).v, m), s.R, s.T, s.Q};
    const Finished<float> f = finish(state, inverse, infinity);

    Target target{0.0f, 0.0f, false, -1};
    if (task.targets.data) {
        const int64_t y = target_of(task.targets, row);
        const bool ignored = y == task.targets.ignore_index;
        target.known = !ignored && y >= 0 && y < task.rows.classes && s.k < 0;
        if (!ignored) target.unknown = infinity - infinity;
        if (target.known) target.logit = cap(s.x_y).v;
    }
    const Labelled<float> l = label(f, target.logit, inverse, infinity);
    const float weight = target.known ? label_weight(options, row) : 0.0f;
    const LinearTarget<float> t = add_label({s.rest, s.gap * inverse.high, s.top}, f, l, weight);
    const LinearLoss<float> loss = linear_loss(f, t, options.z_loss);
    float norm = 0.0f;
    if (task.out[kGradNorm]) {
        const bool is_top = l.x_y == m, is_capped = options.softcap > 0.0f;
        if (states.smoothed && (options.weight || is_capped))
            norm = infinity - infinity;  // the sums would cancel near the target: the slices' gradients give it
        else if (states.smoothed)
            norm =
                smoothed_norm(f, state, l, options.smoothing, float(task.rows.classes), 2.0f * options.z_loss * f.lse);
        else if (is_capped) {
            // Far beyond the cap tops tie whose slopes differ: then the label is the top, and the largest logit
            // another.
            const bool alone = is_top && s.x_y == s.m;
            const float slope = is_top ? cap(s.m).slope : 0.0f;
            const float S = alone ? s.S : fused(slope, slope, without_label(options, s, state.u, l, inverse));
            norm = capped_norm(options, f, S, loss, t, l, is_top, is_top ? s.x_y : s.m, s.x_y);
        } else
            norm = norm_of(options, f, state, l, weight);
    }
    write_option_row(task, row, f, state, target, l, loss, inverse.high * norm, int(class_of(s.k)));
}

template <class Launch>
void merge_slices(const States& states, const Options& options, const States& out, const Launch& launch) {
    launch(merge_parts, (states.count + kThreads - 1) / kThreads, kThreads, states, on_device(options, 1), out);
}

template <class Launch>
void finish_merged(const States& states, const Targets& targets, const Options& options, void* const out[kSlots],
                   const Launch& launch) {
    const Rows rows{nullptr, Dtype::kFloat32, 1, states.count, targets.total, 0, 0};
    const OptionTask task{score_task_of(rows, targets, out), on_device(options, targets.total)};
    launch(finish_parts, (states.count + kThreads - 1) / kThreads, kThreads, task, states);
}

}  // namespace torchassay
