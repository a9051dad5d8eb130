// Launches the gradient kernel.
#include "launch.h"
#include "row_grads.cuh"

namespace torchassay {
namespace cuda {

void row_grads(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
               const Upstream& grad_entropy, void* out, const Place& place) {
    const Launch launch(place);
    switch (rows.dtype) {
        case Dtype::kFloat32:
            return grad_rows<float>(rows, targets, stats, grad_loss, grad_entropy, out, launch);
        case Dtype::kBfloat16:
            return grad_rows<Bfloat16>(rows, targets, stats, grad_loss, grad_entropy, out, launch);
        case Dtype::kFloat16:
            return grad_rows<Float16>(rows, targets, stats, grad_loss, grad_entropy, out, launch);
        case Dtype::kFloat64:
            break;
    }
    throw std::runtime_error("torchassay: the CUDA kernels have no float64");
}

}  // namespace cuda
}  // namespace torchassay
