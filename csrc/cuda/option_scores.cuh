// Which kernel takes which rows under options.
//
// A temperature, class weights and a z-loss change the exponents' scale and the finish alone: such rows go through the
// kernels of row_scores.cuh, all others through those of option_sweeps.cuh.
#pragma once
#include "option_sweeps.cuh"

namespace torchassay {

template <class In, class Launch>
void score_rows_with_options(const Rows& rows, const Targets& targets, const Options& options, void* const out[kSlots],
                             void* states, int multiprocessors, const Launch& launch) {
    const OptionTask task{score_task_of(rows, targets, out), on_device(options, rows.classes)};
    const bool smoothed = targets.data && options.label_smoothing != 0.0;
    if (options.softcap > 0.0 || options.probabilities || smoothed) return sweep_rows<In>(rows, task, launch);
    launch_scores<In>(rows, task, states, multiprocessors, launch);
}

}  // namespace torchassay
