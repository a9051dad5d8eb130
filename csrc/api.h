// Every native entry point, declared once. Nothing here knows torch: raw pointers, sizes and strides in elements.
#pragma once
#include <cstdint>

namespace torchassay {

enum class Dtype : int { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2, kFloat16 = 3 };

// The order of torchassay.scores.ROW_SIGNALS; kStats are the numbers a row that the backward needs.
enum Slot : int {
    kLoss,
    kEntropy,
    kGradNorm,
    kLse,
    kConfidence,
    kLeastConfidence,
    kMargin,
    kGini,
    kTargetMargin,
    kPrediction,
    kStats,
    kSlots
};

// Rows [outer, inner, classes]; row i is at (i / inner) * outer_stride + (i % inner) * inner_stride, its classes dense.
// On the CPU they may also stand class_stride apart: then the rows of an `inner` are neighbours in memory, 16 or more,
// and what has the rows' shape (gradients, probabilities) lies there as [outer, classes, inner], else as [N, classes].
struct Rows {
    const void* data;
    Dtype dtype;
    int64_t outer, inner, classes;
    int64_t outer_stride, inner_stride, class_stride = 1;
    int64_t count() const { return outer * inner; }
};

struct Targets {
    const void* data;  // [N] dense, or null
    bool wide;         // int64, else int32
    int64_t ignore_index;
    // The rows' classes are those from `first` on of `total`; 0: there are no others. Only for the functions that say
    // so.
    int64_t first = 0, total = 0;
};

// One upstream gradient: [N] with any stride, or null. float32, float64 for float64 rows.
struct Upstream {
    const void* data;
    int64_t stride;
};

// One number for each row (float32; float64 for float64 rows), or where data is null one for all.
struct Number {
    const void* data;
    double value;
};

// What a loss asks for besides: torchassay/options.py. In float32, float64 for float64 rows.
struct Options {
    const void* weight;         // [C], or null
    const void* probabilities;  // [N, C] dense (see Rows), in the place of labels, or null
    Number temperature;
    double label_smoothing, softcap, z_loss;  // softcap 0: none
};

// Scores every row. out[s] is null where a signal was not asked for, else [N] (float32; float64 for float64 rows;
// kPrediction int64; kStats [6, N]: m, u, z, r, miss, mu). Returns the first row whose target is out of range, or -1.
int64_t row_scores(const Rows& rows, const Targets& targets, void* const out[kSlots], int threads);

// d (sum grad_loss loss + grad_entropy entropy) / d rows into out [N, classes], dense (see Rows), in the rows' dtype.
void row_grads(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
               const Upstream& grad_entropy, void* out, int threads);

// The same under options. kStats are [7, N] here: m, u, z, r, rest, mu, beta (LinearLoss of row_stats.h).
int64_t option_scores(const Rows& rows, const Targets& targets, const Options& options, void* const out[kSlots],
                      int threads);
// The classes may be a slice of all (Targets::first), the options' weights those of the slice; then without
// probabilities.
void option_grads(const Rows& rows, const Targets& targets, const Options& options, const void* stats,
                  const Upstream& grad_loss, const Upstream& grad_entropy, void* out, int threads);

// The states of rows of which a slice of the classes is at hand: torchassay/reference/states.py. float32, float64 for
// float64 rows.
constexpr int kStateNumbers = 7;      // m, u, R, T, Q, S, x_y
constexpr int kSmoothedNumbers = 10;  // and rest, gap, top
struct States {
    void* numbers;  // [parts, kStateNumbers, N], with label smoothing [parts, kSmoothedNumbers, N]
    int64_t* k;     // [parts, N]
    int64_t parts;  // slices, in the order of their classes
    int64_t count;  // N
    bool wide;      // float64
    bool smoothed;
};

// The state of a slice (Targets::first) into `out`, of one part.
void row_states(const Rows& rows, const Targets& targets, const Options& options, const States& out, int threads);
// The state of all slices into `out`, of one part. Of the options only temperature and softcap are read.
void merge_states(const States& states, const Options& options, const States& out, int threads);
// As option_scores, from the states of slices that together hold all classes (targets.total); the options' weight is
// [N], that of each target's class. The norm of the gradient is NaN under label smoothing with weights or a softcap.
int64_t finish_states(const States& states, const Targets& targets, const Options& options, void* const out[kSlots],
                      int threads);

// What stands on a sample's outputs instead of a softmax over classes: a sigmoid on each, or nothing.
enum class Head : int { kBinary, kMse, kL1, kHuber };

// Samples of such a head. The rows are the samples (outer 1), their classes the labels or dimensions; the target,
// float32 (float64 for float64 rows), lies as the rows do, its rows `target_stride` apart.
struct HeadTask {
    Rows rows;
    const void* target;
    int64_t target_stride;
    const void* pos_weight;  // [classes] in the target's dtype, or null; for kBinary
    Head head;
    double delta;              // of kHuber
    void* out[kGradNorm + 1];  // kLoss, kEntropy (kBinary alone) and kGradNorm, each [N] as of row_scores, or null
};
void head_scores(const HeadTask& task, int threads);

// The key of random numbers: a 64-bit number, or where one lies.
struct Seed {
    const int64_t* data;  // null: value
    int64_t value;
};

// out[i], float32 in [0, 1), decides whether the row with this id is picked in a step: csrc/philox.h.
void uniforms(const int64_t* row_id, int64_t count, const Seed& seed, uint32_t step, float* out);

// The random numbers of the first `columns` columns of a draw of each row, into out [rows, columns]: normals, or
// uniforms in [0, 1). `purpose` as in csrc/philox.h.
void normals(const int64_t* row_id, int64_t rows, const Seed& seed, int purpose, uint32_t draw, int64_t columns,
             bool uniform, float* out, int threads);

// The order of torchassay.scores.NOISY_SIGNALS.
enum DrawSlot : int { kNoisyEntropy, kPredictiveEntropy, kMutualInformation, kDrawSlots };

// Several draws of every row: noisy copies ((x_j - top) + std eps_j) scale, where top is the row's largest logit
// (float32; double for float64 rows), or where top is null the members of an ensemble, which lie `stride` elements
// apart.
struct Draws {
    int64_t count;
    int64_t stride;
    const void* top;
    Number std, scale;
    const int64_t* row_id;  // null: 0 to N - 1
    Seed seed;
};

// The signals of several draws. out[s] is null where a signal was not asked for, else [N] (float32; float64 for float64
// rows).
void draw_scores(const Rows& rows, const Draws& draws, void* const out[kDrawSlots], int threads);

// Weights under a tree of sums: torchassay/reference/sum_tree.py. `sums` has room for those of every level above.
struct SumTree {
    double* leaves;
    double* sums;
    int64_t n;
};
struct SumTreeBuilt {
    int64_t wrong;     // the first leaf that is no weight, finite and at least 0; or -1
    int64_t positive;  // leaves above 0
};
SumTreeBuilt sum_tree_build(const SumTree& tree, int threads);
// Sets leaves, one after the other, and sums anew what is above them; by how many more leaves are above 0 now.
int64_t sum_tree_update(const SumTree& tree, const int64_t* index, const double* weights, int64_t count);
// The draws `first` to `first` + `count` - 1 of a seed, with replacement, from a tree whose sum is above 0.
void sum_tree_sample(const SumTree& tree, uint64_t seed, int64_t first, int64_t count, int64_t* out, int threads);

// The latest values of a signal: the first min(*total, capacity) entries, at most 2^20, in any order, none of them NaN.
struct Window {
    const float* data;
    int64_t capacity;
    const int64_t* total;
};
struct Values {
    const float* data;
    int64_t stride, count;
};

// The share of a window's entries below each value; midrank: half of those equal to it count too. NaN for NaN, else 1
// if there are no entries. Counts are divided as float32: the same bits from every backend.
void cdf(const Window& window, const Values& values, bool midrank, float* out, int threads);

// A step of torchassay.History in one go: appends the values to the window, but for NaN and those whose mask is 0, and
// writes max(p_min, cdf ^ beta) of each; p_min for NaN, 0 where the mask is 0.
struct Selection {
    const uint8_t* mask;  // or null
    bool update, midrank;
    float beta, p_min;
};
void select_probability(float* window, int64_t capacity, int64_t* total, const Values& values, const Selection& how,
                        float* out, int threads);

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
    int device;    // the calling thread's current one
    void* stream;  // cudaStream_t
};

// Bytes of device memory that row_scores needs besides, aligned to 16.
int64_t row_scores_workspace(const Rows& rows, int device);
void row_scores(const Rows& rows, const Targets& targets, void* const out[kSlots], void* workspace, const Place& place);
void row_grads(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
               const Upstream& grad_entropy, void* out, const Place& place);
int64_t option_scores_workspace(const Rows& rows, int device);
void option_scores(const Rows& rows, const Targets& targets, const Options& options, void* const out[kSlots],
                   void* workspace, const Place& place);
void option_grads(const Rows& rows, const Targets& targets, const Options& options, const void* stats,
                  const Upstream& grad_loss, const Upstream& grad_entropy, void* out, const Place& place);
// Bytes of device memory that row_states needs besides, aligned to 16.
int64_t row_states_workspace(const Rows& rows, int device);
void row_states(const Rows& rows, const Targets& targets, const Options& options, const States& out, void* workspace,
                const Place& place);
void merge_states(const States& states, const Options& options, const States& out, const Place& place);
void finish_states(const States& states, const Targets& targets, const Options& options, void* const out[kSlots],
                   const Place& place);
void uniforms(const int64_t* row_id, int64_t count, const Seed& seed, uint32_t step, float* out, const Place& place);
void normals(const int64_t* row_id, int64_t rows, const Seed& seed, int purpose, uint32_t draw, int64_t columns,
             bool uniform, float* out, const Place& place);
// Bytes of device memory that draw_scores needs besides, aligned to 16.
int64_t draw_scores_workspace(const Rows& rows, const Draws& draws, int device);
void draw_scores(const Rows& rows, const Draws& draws, void* const out[kDrawSlots], void* workspace,
                 const Place& place);
void head_scores(const HeadTask& task, const Place& place);
// The window begins on 16 bytes.
void cdf(const Window& window, const Values& values, bool midrank, float* out, const Place& place);

}  // namespace cuda
}  // namespace torchassay
