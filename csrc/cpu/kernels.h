// The CPU kernels as one table for each instruction set.
//
// The files that include this are compiled several times, with TORCHASSAY_ISA naming the instruction set and the
// compiler's flags allowing it; launch.cpp takes the best table this machine can run. Unlike ifunc clones this lets a
// test run every variant on one machine.
#pragma once
#include <atomic>

#include "../api.h"

namespace torchassay {

constexpr int64_t kSegment = 8192;  // long rows are cut here, always, so threads never change a bit
constexpr int64_t kInLanes = 256;   // rows of at most this many classes stand in lanes: 16 KB of L1

// The state of one segment of a row: see row_stats.h.
struct Segment {
    double m, u, R, T, Q;
    int64_t k;  // the lowest column of m
};

struct ScoreJob {
    Rows rows;
    Targets targets;
    void* const* out;
    std::atomic<int64_t> bad_row;  // the first row whose target is out of range

    bool wants(Slot slot) const { return out[slot]; }
    int64_t segments() const { return (rows.classes + kSegment - 1) / kSegment; }
};

struct GradJob {
    Rows rows;
    Targets targets;
    const void* stats;
    Upstream grad_loss, grad_entropy;
    void* out;
};

struct DrawJob {
    Rows rows;
    Draws draws;
    uint64_t key;
    void* const* out;

    bool wants_mixture() const { return out[kPredictiveEntropy] || out[kMutualInformation]; }
};

struct NormalJob {
    const int64_t* row_id;
    uint64_t key;
    uint32_t purpose, draw;
    int64_t columns;
    bool uniform;
    float* out;
};

// clang-format off
// Every kernel: its result, name and parameters.
#define TORCHASSAY_EACH_KERNEL(kernel)                                                                             \
    kernel(void, score_rows, (ScoreJob&, int64_t begin, int64_t end))                                              \
    kernel(void, score_segment, (const ScoreJob&, int64_t row, int64_t segment, Segment* out))                     \
    kernel(void, score_states, (ScoreJob&, int64_t begin, int64_t end, const Segment* states)) /* [N, segments] */ \
    kernel(void, grad_columns, (const GradJob&, int64_t row, int64_t begin, int64_t end))                          \
    kernel(int64_t, draw_scratch, (const DrawJob&)) /* bytes of memory that draw_rows needs */                     \
    kernel(void, draw_rows, (const DrawJob&, int64_t begin, int64_t end, void* scratch))                           \
    kernel(void, normal_rows, (const NormalJob&, int64_t begin, int64_t end))                                      \
    kernel(void, score_heads, (const HeadTask&, int64_t begin, int64_t end))
// clang-format on

struct Kernels {
    const char* isa;
    int lanes;  // float32 lanes; rows are handed out in multiples of it
#define TORCHASSAY_MEMBER(result, name, parameters) result(*name) parameters;
    TORCHASSAY_EACH_KERNEL(TORCHASSAY_MEMBER)
#undef TORCHASSAY_MEMBER
};

// Walks over rows: one division to begin with, none for each row.
template <class T>
class RowCursor {
public:
    inline __attribute__((always_inline)) RowCursor(const Rows& rows, int64_t i)
        : rows_(rows), a_(rows.outer == 1 ? 0 : i / rows.inner), b_(i - a_ * rows.inner) {}
    inline __attribute__((always_inline)) const T* next() {
        const T* row = static_cast<const T*>(rows_.data) + a_ * rows_.outer_stride + b_ * rows_.inner_stride;
        if (++b_ == rows_.inner) b_ = 0, ++a_;
        return row;
    }

private:
    const Rows& rows_;
    int64_t a_, b_;
};

inline __attribute__((always_inline)) int64_t target_at(const Targets& targets, int64_t i) {
    return targets.wide ? static_cast<const int64_t*>(targets.data)[i] : static_cast<const int32_t*>(targets.data)[i];
}

// Calls function<type to compute in, type in memory>(job, ...) for the rows of `job`.
#define TORCHASSAY_BY_DTYPE(function, ...)                      \
    switch (job.rows.dtype) {                                   \
        case Dtype::kFloat32:                                   \
            return function<float, float>(job, __VA_ARGS__);    \
        case Dtype::kFloat64:                                   \
            return function<double, double>(job, __VA_ARGS__);  \
        case Dtype::kBfloat16:                                  \
            return function<float, Bfloat16>(job, __VA_ARGS__); \
        case Dtype::kFloat16:                                   \
            return function<float, Float16>(job, __VA_ARGS__);  \
    }

}  // namespace torchassay
