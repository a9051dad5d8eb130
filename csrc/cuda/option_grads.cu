// Launches the gradient kernel under options.
#include "launch.h"
#include "option_grads.cuh"

namespace torchassay {
namespace cuda {

void option_grads(const Rows& rows, const Targets& targets, const Options& options, const void* stats,
                  const Upstream& grad_loss, const Upstream& grad_entropy, void* out, const Place& place) {
    const Launch launch(place);
    switch (rows.dtype) {
        case Dtype::kFloat32:
            return grad_rows_with_options<float>(rows, targets, options, stats, grad_loss, grad_entropy, out, launch);
        case Dtype::kBfloat16:
            return grad_rows_with_options<Bfloat16>(rows, targets, options, stats, grad_loss, grad_entropy, out,
                                                    launch);
        case Dtype::kFloat16:
            return grad_rows_with_options<Float16>(rows, targets, options, stats, grad_loss, grad_entropy, out, launch);
        case Dtype::kFloat64:
            break;
    }
    throw std::runtime_error("torchassay: the CUDA kernels have no float64");
}

}  // namespace cuda
}  // namespace torchassay
