// Launches the score kernels.
#include "launch.h"
#include "row_scores.cuh"

namespace torchassay {
namespace cuda {

int64_t row_scores_workspace(const Rows& rows, int device) {
    if (!cut_into_spans(rows, multiprocessors(device))) return 0;
    const int64_t spans = rows.dtype == Dtype::kFloat32 ? spans_of<float>(rows) : spans_of<Float16>(rows);
    return rows.count() * spans * kThreads * int64_t(sizeof(Words));
}

void row_scores(const Rows& rows, const Targets& targets, void* const out[kSlots], void* workspace,
                const Place& place) {
    const Launch launch(place);
    const int processors = multiprocessors(place.device);
    switch (rows.dtype) {
        case Dtype::kFloat32:
            return score_rows<float>(rows, targets, out, workspace, processors, launch);
        case Dtype::kBfloat16:
            return score_rows<Bfloat16>(rows, targets, out, workspace, processors, launch);
        case Dtype::kFloat16:
            return score_rows<Float16>(rows, targets, out, workspace, processors, launch);
        case Dtype::kFloat64:
            break;
    }
    throw std::runtime_error("torchassay: the CUDA kernels have no float64");
}

}  // namespace cuda
}  // namespace torchassay
