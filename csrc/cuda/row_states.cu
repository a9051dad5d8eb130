// Launches the kernels that write states of slices.
#include "launch.h"
#include "row_states.cuh"

namespace torchassay {

extern template void sweep_rows<float>(const Rows&, const StateTask&, const Launch&);  // state_sweeps.cu
extern template void sweep_rows<Bfloat16>(const Rows&, const StateTask&, const Launch&);
extern template void sweep_rows<Float16>(const Rows&, const StateTask&, const Launch&);

namespace cuda {

int64_t row_states_workspace(const Rows& rows, int device) { return row_scores_workspace(rows, device); }

void row_states(const Rows& rows, const Targets& targets, const Options& options, const States& out, void* workspace,
                const Place& place) {
    const Launch launch(place);
    const int processors = multiprocessors(place.device);
    switch (rows.dtype) {
        case Dtype::kFloat32:
            return states_of_rows<float>(rows, targets, options, out, workspace, processors, launch);
        case Dtype::kBfloat16:
            return states_of_rows<Bfloat16>(rows, targets, options, out, workspace, processors, launch);
        case Dtype::kFloat16:
            return states_of_rows<Float16>(rows, targets, options, out, workspace, processors, launch);
        case Dtype::kFloat64:
            break;
    }
    throw std::runtime_error("torchassay: the CUDA kernels have no float64");
}

}  // namespace cuda
}  // namespace torchassay
