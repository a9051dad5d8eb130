// From the state of a row to its signals, in the one lane that finishes it.
#pragma once
#include "row_memory.cuh"

namespace torchassay {

// What a score kernel is launched with.
struct ScoreTask {
    RowsOnDevice rows;
    Targets targets;
    void* out[kSlots];
};

TORCHASSAY_DEVICE Unscaled scale_of(const ScoreTask&, int64_t) { return {}; }

TORCHASSAY_DEVICE int64_t target_of(const Targets& targets, int64_t row) {
    return targets.wide ? simt::load(static_cast<const int64_t*>(targets.data) + row)
                        : simt::load(static_cast<const int32_t*>(targets.data) + row);
}

// A row's target as the kernels need it, looked up early, so that the loads are done when the row is.
struct Target {
    float logit;
    float unknown;  // 0 for an ignored row, NaN for a target out of range
    bool known;
    int y;  // if it is known
};

template <class In>
TORCHASSAY_DEVICE Target look_up(const ScoreTask& task, const In* start, int64_t row) {
    Target target{0.0f, 0.0f, false, -1};
    if (!task.targets.data) return target;
    const int64_t y = target_of(task.targets, row);
    if (y == task.targets.ignore_index) return target;
    target.known = y >= 0 && y < task.rows.classes;
    if (target.known) {
        target.logit = load_logit(start + y);
        target.y = int(y);
    } else {
        target.unknown = TORCHASSAY_INFINITY - TORCHASSAY_INFINITY;
    }
    return target;
}

TORCHASSAY_DEVICE void put(const ScoreTask& task, Slot slot, int64_t i, float value) {
    if (task.out[slot]) static_cast<float*>(task.out[slot])[i] = value;
}

// The signals that need no target.
TORCHASSAY_DEVICE void write_unlabelled(const ScoreTask& task, int64_t row, const Finished<float>& f,
                                        const RowState<float>& state, float mu, float margin, int prediction) {
    put(task, kEntropy, row, f.log_c + mu);
    put(task, kLse, row, f.lse);
    put(task, kConfidence, row, f.c);
    put(task, kLeastConfidence, row, f.r * f.c);
    put(task, kMargin, row, margin);
    put(task, kGini, row, gini_of(f, state));
    if (task.out[kPrediction]) static_cast<int64_t*>(task.out[kPrediction])[row] = prediction;
}

TORCHASSAY_DEVICE void write_row(const ScoreTask& task, int64_t row, const RowState<float>& state, const Target& target,
                                 int prediction) {
    const float infinity = TORCHASSAY_INFINITY;
    const Inverse<float> inverse{1.0f, 0.0f};
    const Finished<float> f = finish(state, inverse, infinity);
    const float mu = entropy_offset(f, state), margin = margin_of(f, state, infinity);
    write_unlabelled(task, row, f, state, mu, margin, prediction);
    float miss = 0.0f;
    if (task.targets.data) {
        const Labelled<float> l = label(f, target.logit, inverse, infinity);
        miss = select(target.known, l.miss, target.unknown);
        put(task, kLoss, row, select(target.known, l.loss, target.unknown));
        put(task, kGradNorm, row, select(target.known, grad_norm_of(f, state, l), target.unknown));
        put(task, kTargetMargin, row, select(target.known, target_margin_of(f, l, margin), target.unknown));
    }
    if (task.out[kStats]) {
        const int64_t n = task.rows.count;
        const float stats[6] = {f.m, state.u, f.z, f.r, miss, mu};
#pragma unroll
        for (int q = 0; q < 6; ++q) put(task, kStats, q * n + row, stats[q]);
    }
}

}  // namespace torchassay
