// Launches the kernels of heads that are no softmax.
#include "head_scores.cuh"
#include "launch.h"

namespace torchassay {
namespace cuda {

void head_scores(const HeadTask& task, const Place& place) {
    const Launch launch(place);
    switch (task.rows.dtype) {
        case Dtype::kFloat32:
            return score_heads<float>(task, launch);
        case Dtype::kBfloat16:
            return score_heads<Bfloat16>(task, launch);
        case Dtype::kFloat16:
            return score_heads<Float16>(task, launch);
        case Dtype::kFloat64:
            break;
    }
    throw std::runtime_error("torchassay: the CUDA kernels have no float64");
}

}  // namespace cuda
}  // namespace torchassay
