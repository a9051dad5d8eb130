// States of slices of rows, by the walks of row_scores.cuh: a lane that would finish its row writes the state instead.
// Under a softcap, and for what label smoothing spreads, by those of option_sweeps.cuh.
#pragma once
#include "option_sweeps.cuh"
// after the operations it is made of
#include "../slice_stats.h"

namespace torchassay {

// out[kStats] are the numbers of a state, [7, count] or [10, count], out[kPrediction] its k.
struct StateTask : OptionTask {
    bool smoothed;
};

// A target of another slice is none here, and one out of range is of no slice.
template <class In>
TORCHASSAY_DEVICE Target look_up(const StateTask& task, const In* start, int64_t row) {
    Target target{0.0f, 0.0f, false, -1};
    if (!task.targets.data) return target;
    const int64_t y = target_of(task.targets, row), first = task.targets.first;
    target.known = y != task.targets.ignore_index && y >= first && y - first < task.rows.classes;
    if (target.known) {
        target.y = int(y - first);
        target.logit = load_logit(start + target.y);
    }
    return target;
}

// A slice that is all -inf has no sums, which are what its lanes make of nothing, but a NaN passes.
TORCHASSAY_DEVICE void write_state(const StateTask& task, int64_t row, const RowState<float>& s, float S,
                                   const LinearTarget<float>& t, const Target& target, int column) {
    const bool none = s.m == -TORCHASSAY_INFINITY;
    const float zero = s.R - s.R;
    const float numbers[kSmoothedNumbers] = {
        s.m,   s.u,  none ? zero : s.R, none ? zero : s.T, none ? zero : s.Q, none ? zero : S, target.logit, t.rest,
        t.gap, t.top};
#pragma unroll
    for (int q = 0; q < kSmoothedNumbers; ++q)
        if (q < kStateNumbers || task.smoothed) put(task, kStats, q * task.rows.count + row, numbers[q]);
    const int64_t k = task.targets.first + column;
    static_cast<int64_t*>(task.out[kPrediction])[row] = target.known ? ~k : k;
}

TORCHASSAY_DEVICE void write_row(const StateTask& task, int64_t row, const RowState<float>& sums, const Target& target,
                                 int column) {
    const float T = sums.T * inverse_of(task.options, row).high;  // it comes in units of the logits
    write_state(task, row, {sums.m, sums.u, sums.R, T, sums.Q}, sums.Q, {0.0f, 0.0f, 0.0f}, target, column);
}

template <bool kCapped, class In, Unit kUnit, int kLanes>
TORCHASSAY_DEVICE void sweep_row(const StateTask& task, const Walk<In, kUnit, kLanes>& walk, int64_t row, int lane,
                                 int steps, int64_t own) {
    const OptionsOnDevice& options = task.options;
    const Target target = look_up(task, walk.row, row);
    const RowTops tops = tops_of(walk, lane, steps);
    const float u = smaller(capped<kCapped>(options, tops.u).v, capped<kCapped>(options, tops.m).v);
    // S leaves out the top alone, whatever the label
    const Sweep<In, kUnit, kLanes, kCapped> sweep{
        options, walk, row, lane, steps, tops.k, -1, larger(u, kLowest), scale_of(options, row)};
    const TargetSums sums = sweep.sums(task.smoothed);
    const int column = prediction_of(walk, lane, tops.k, sums.s.R);
    if (lane != 0 || own != row) return;
    const float T = sums.s.T * inverse_of(options, row).high;
    const float top = task.smoothed ? spread_entry(options, row, tops.k, walk.classes) : 0.0f;
    const float S = kCapped ? sums.S : sums.s.Q;
    write_state(task, row, {tops.m, tops.u, sums.s.R, T, sums.s.Q}, S, {sums.rest, sums.gap, top}, target, column);
}

template <class In, class Launch>
void states_of_rows(const Rows& rows, const Targets& targets, const Options& options, const States& out, void* lanes,
                    int multiprocessors, const Launch& launch) {
    void* slots[kSlots] = {};
    slots[kStats] = out.numbers, slots[kPrediction] = out.k;
    const StateTask task{{score_task_of(rows, targets, slots), on_device(options, targets.total)}, out.smoothed};
    if (options.softcap > 0.0 || out.smoothed) return sweep_rows<In>(rows, task, launch);
    launch_scores<In>(rows, task, lanes, multiprocessors, launch);
}

}  // namespace torchassay
