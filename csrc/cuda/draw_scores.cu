// Launches the kernels of several draws.
#include "draw_scores.cuh"
#include "launch.h"

namespace torchassay {
namespace cuda {

int64_t draw_scores_workspace(const Rows& rows, const Draws& draws, int) { return draw_states_bytes(rows, draws); }

void draw_scores(const Rows& rows, const Draws& draws, void* const out[kDrawSlots], void* workspace,
                 const Place& place) {
    const Launch launch(place);
    switch (rows.dtype) {
        case Dtype::kFloat32:
            return score_draws<float>(rows, draws, out, workspace, launch);
        case Dtype::kBfloat16:
            return score_draws<Bfloat16>(rows, draws, out, workspace, launch);
        case Dtype::kFloat16:
            return score_draws<Float16>(rows, draws, out, workspace, launch);
        case Dtype::kFloat64:
            break;
    }
    throw std::runtime_error("torchassay: the CUDA kernels have no float64");
}

}  // namespace cuda
}  // namespace torchassay
