// Every native entry point, declared once. Nothing here knows torch: raw pointers, sizes and strides in elements.
#pragma once
#include <cstdint>

namespace torchassay {

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2, kFloat16 = 3 };

// The order of torchassay.SIGNALS; kStats are the six numbers a row that the backward needs.
enum Slot : int {
    kLoss,
    kEntropy,
    kGradNorm,
    kLse,
    kConfidence,
    kLeastConfidence,
    kMargin,
    kTargetMargin,
    kPrediction,
    kStats,
    kSlots
};

// Rows [outer, inner, classes]; row i is at (i / inner) * outer_stride + (i % inner) * inner_stride, its classes dense.
struct Rows {
    const void* data;
    Dtype dtype;
    int64_t outer, inner, classes;
    int64_t outer_stride, inner_stride;
    int64_t count() const { return outer * inner; }
};

struct Targets {
    const void* data;  // [N] dense, or null
    bool wide;         // int64, else int32
    int64_t ignore_index;
};

// One upstream gradient: [N] with any stride, or null. float32, float64 for float64 rows.
struct Upstream {
    const void* data;
    int64_t stride;
};

// Scores every row. out[s] is null where a signal was not asked for, else [N] (float32; float64 for float64 rows;
// kPrediction int64; kStats [6, N]: m, u, z, r, miss, mu). Returns the first row whose target is out of range, or -1.
int64_t row_scores(const Rows& rows, const Targets& targets, void* const out[kSlots], int threads);

// d (sum grad_loss loss + grad_entropy entropy) / d rows into out [N, classes], dense, in the rows' dtype.
void row_grads(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
               const Upstream& grad_entropy, void* out, int threads);

// The instruction sets that the CPU kernels were built for and this machine has, best first: "avx512,avx2,baseline".
const char* cpu_isas();
// The one in use; set_cpu_isa returns false for a name that cpu_isas() does not list.
const char* cpu_isa();
bool set_cpu_isa(const char* name);

// The same on NVIDIA GPUs, compiled where there is nvcc: all pointers are to device memory, no float64. They launch and
// return; a launch that fails throws std::runtime_error. A target out of range makes its row's loss, grad_norm,
// target_margin and gradient NaN.
namespace cuda {

struct Place {
    int device;
    void* stream;  // cudaStream_t
};

// Bytes of device memory that row_scores needs besides, aligned to 16.
int64_t row_scores_workspace(const Rows& rows, int device);
void row_scores(const Rows& rows, const Targets& targets, void* const out[kSlots], void* workspace, const Place& place);
void row_grads(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
               const Upstream& grad_entropy, void* out, const Place& place);

}  // namespace cuda
}  // namespace torchassay
