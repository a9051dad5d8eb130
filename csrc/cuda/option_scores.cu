// Launches the score kernels under options.
#include "launch.h"
#include "option_scores.cuh"

namespace torchassay {

extern template void sweep_rows<float>(const Rows&, const OptionTask&, const Launch&);  // option_sweeps.cu
extern template void sweep_rows<Bfloat16>(const Rows&, const OptionTask&, const Launch&);
extern template void sweep_rows<Float16>(const Rows&, const OptionTask&, const Launch&);

namespace cuda {

int64_t option_scores_workspace(const Rows& rows, int device) { return row_scores_workspace(rows, device); }

void option_scores(const Rows& rows, const Targets& targets, const Options& options, void* const out[kSlots],
                   void* workspace, const Place& place) {
    const Launch launch(place);
    const int processors = multiprocessors(place.device);
    switch (rows.dtype) {
        case Dtype::kFloat32:
            return score_rows_with_options<float>(rows, targets, options, out, workspace, processors, launch);
        case Dtype::kBfloat16:
            return score_rows_with_options<Bfloat16>(rows, targets, options, out, workspace, processors, launch);
        case Dtype::kFloat16:
            return score_rows_with_options<Float16>(rows, targets, options, out, workspace, processors, launch);
        case Dtype::kFloat64:
            break;
    }
    throw std::runtime_error("torchassay: the CUDA kernels have no float64");
}

}  // namespace cuda
}  // namespace torchassay
