// The CPU kernels as one table for each instruction set.
//
// The files that include this are compiled several times, with TORCHASSAY_ISA naming the instruction set and the
// compiler's flags allowing it; launch.cpp takes the best table this machine can run. Unlike ifunc clones this lets a
// test run every variant on one machine.
#pragma once
#include <atomic>

#include "../api.h"

namespace torchassay {

constexpr int64_t kSegment = 8192;   // long rows are cut here, always, so threads never change a bit
constexpr int64_t kInLanes = 256;    // rows of at most this many classes stand in lanes: 16 KB of L1
constexpr int64_t kNeighbours = 64;  // rows of an `inner` with their classes apart are worked on by so many, or up to
                                     // twice as many at its end

// The state of one segment of a row: see row_stats.h.
struct Segment {
    double m, u, R, T, Q;
    int64_t k;       // the lowest column of m
    double A;        // sum of u - x_j over all classes but the top one, where a smoothed label asks for it
    int64_t others;  // how many those are
    double S;        // Q with the squares of the slopes, under a softcap
};

struct ScoreJob {
    Rows rows;
    Targets targets;
    void* const* out;
    std::atomic<int64_t> bad_row;  // the first row whose target is out of range

    bool wants(Slot slot) const { return out[slot]; }
    bool wants_squares() const { return wants(kGradNorm) || wants(kGini); }
    int64_t columns_at_once() const { return kSegment; }
    int64_t segments() const { return (rows.classes + kSegment - 1) / kSegment; }
};

struct GradJob {
    Rows rows;
    Targets targets;
    const void* stats;
    Upstream grad_loss, grad_entropy;
    void* out;
};

// The options of a call as kernels read them. Without a target only temperature and softcap are left.
struct OptionTerms {
    Options options;
    // what every row's target has in common, in the dtype of the options, followed by four vectors of 0, or null
    const void* spread;  // label_smoothing / classes w_j
    const void* own;     // (1 - label_smoothing) w_j, the factor of a probability
    double inverse;      // of the temperature, where it is one number
    double rate;         // -2 / softcap

    bool capped() const { return options.softcap > 0; }
    // a row's logits are mapped first, and the norm of its gradient is a sum of its own
    bool swept() const {
        return options.probabilities || (options.label_smoothing > 0 && (options.weight || capped()));
    }
    // evenly smoothed labels: their sums need no second look at the logits
    bool smoothed() const { return options.label_smoothing > 0 && !swept(); }
};

struct OptionJob : ScoreJob, OptionTerms {
    OptionJob(const Rows& rows, const Targets& targets, void* const* out, const OptionTerms& terms)
        : ScoreJob{rows, targets, out, {INT64_MAX}}, OptionTerms(terms) {}
    // capped rows are summed in one piece: the sum S of slopes is not one that can be joined
    int64_t columns_at_once() const { return capped() ? rows.classes : kSegment; }
    int64_t segments() const { return capped() ? 1 : ScoreJob::segments(); }
};

struct OptionGradJob : GradJob, OptionTerms {};

// States into `to`; its k come as columns of the slice, its rest and top are left out. `out` only says what to sum up.
struct StateJob : OptionJob {
    States to;
    StateJob(const Rows& rows, const Targets& targets, void* const* out, const OptionTerms& terms, const States& to)
        : OptionJob(rows, targets, out, terms), to(to) {}
};

// Scores, or a state, from the states of slices; the rows have all classes and no data.
struct FinishJob : OptionJob {
    States from;
    FinishJob(const Rows& rows, const Targets& targets, void* const* out, const OptionTerms& terms, const States& from)
        : OptionJob(rows, targets, out, terms), from(from) {}
};

// Swept rows along memory are taken so many at once: their numbers are finished together.
inline int64_t swept_at_once(int64_t classes) { return classes > 4096 ? 1 : classes > 512 ? 8 : 16; }

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
// Every kernel: its result, name and parameters. `scratch` of the first and of those with options begins on a cache
// line: 64 bytes a class and three vectors more for rows with their classes apart, three times as much for swept ones.
#define TORCHASSAY_EACH_KERNEL(kernel)                                                                                \
    kernel(void, score_rows, (ScoreJob&, int64_t begin, int64_t end, void* scratch))                                  \
    kernel(void, score_segment, (const ScoreJob&, int64_t row, int64_t segment, Segment* out))                        \
    kernel(void, score_states, (ScoreJob&, int64_t begin, int64_t end, const Segment* states)) /* [N, segments] */    \
    kernel(void, grad_columns, (const GradJob&, int64_t row, int64_t begin, int64_t end))                             \
    kernel(void, grad_neighbours, (const GradJob&, int64_t begin, int64_t end)) /* rows of one `inner` */             \
    kernel(void, option_rows, (OptionJob&, int64_t begin, int64_t end, void* scratch))                                \
    kernel(void, option_segment, (const OptionJob&, int64_t row, int64_t segment, Segment* out))                      \
    kernel(void, option_states, (OptionJob&, int64_t begin, int64_t end, const Segment* states))                      \
    kernel(void, sweep_rows, (OptionJob&, int64_t begin, int64_t end, void* scratch))                                 \
    kernel(void, state_rows, (StateJob&, int64_t begin, int64_t end, void* scratch))                                  \
    kernel(void, state_segment, (const StateJob&, int64_t row, int64_t segment, Segment* out))                        \
    kernel(void, state_states, (StateJob&, int64_t begin, int64_t end, const Segment* states))                        \
    kernel(void, merge_states, (const FinishJob&, const States& to, int64_t begin, int64_t end))                      \
    kernel(void, finish_states, (FinishJob&, int64_t begin, int64_t end))                                             \
    kernel(void, option_columns, (const OptionGradJob&, int64_t row, int64_t begin, int64_t end))                     \
    kernel(void, option_neighbours, (const OptionGradJob&, int64_t begin, int64_t end))                               \
    kernel(int64_t, draw_scratch, (const DrawJob&)) /* bytes of memory that draw_rows needs */                        \
    kernel(void, draw_rows, (const DrawJob&, int64_t begin, int64_t end, void* scratch))                              \
    kernel(void, normal_rows, (const NormalJob&, int64_t begin, int64_t end))                                         \
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

// Where the label of row i stands among the `classes` that are here; -1: elsewhere, or it is ignored.
inline __attribute__((always_inline)) int64_t column_at(const Targets& targets, int64_t classes, int64_t i) {
    const int64_t y = target_at(targets, i);
    const bool here = y != targets.ignore_index && y >= targets.first && y - targets.first < classes;
    return here ? y - targets.first : -1;
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
