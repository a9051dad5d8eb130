// Which kernel takes which rows. `launch(kernel, blocks, threads, arguments...)` is CUDA's or the host shim's.
#pragma once
#include "row_scores_long.cuh"
#include "row_scores_short.cuh"

namespace torchassay {

// Up to kShort columns a warp holds its rows in registers; up to this many it walks a row by itself; above, a block
// does. Guesses, as is what counts as few rows: no GPU has timed them yet.
constexpr int64_t kWarpRow = 8192;

// Few long rows are cut into spans: those that leave a multiprocessor without a row.
inline bool cut_into_spans(const Rows& rows, int multiprocessors) {
    return rows.classes > kWarpRow && rows.count() < multiprocessors;
}

template <class In>
int64_t spans_of(const Rows& rows) {
    constexpr int64_t span = Walk<In, kUnit16, kThreads>::kSpan;
    return (rows.classes + span - 1) / span;
}

// What every row starts at a multiple of, and is a whole number of.
template <class In>
Unit unit_of(const Rows& rows) {
    const int64_t strides = (rows.outer > 1 ? rows.outer_stride : 0) | (rows.inner > 1 ? rows.inner_stride : 0);
    const uint64_t bytes = reinterpret_cast<uintptr_t>(rows.data) | uint64_t(strides | rows.classes) * sizeof(In);
    return bytes % 16 == 0 ? kUnit16 : bytes % 8 == 0 ? kUnit8 : kAnywhere;
}

template <class In, Unit kUnit, class Task, class Launch>
void score_short_rows(const Rows& rows, const Task& task, int multiprocessors, const Launch& launch) {
    int log_lanes = 0;
    while (kColumnsOfLane << log_lanes < rows.classes) ++log_lanes;
    const int64_t groups = 32 >> log_lanes, warps = kThreads / 32, count = rows.count();
    int64_t steps = count / (groups * multiprocessors * 32);  // 32 warps each, then several rows a warp
    steps = steps < 1 ? 1 : steps > 32 / groups ? 32 / groups : steps;
    const int64_t tile = warps * groups * steps;
    launch(short_rows<In, kUnit, Task>, (count + tile - 1) / tile, kThreads, task, log_lanes, int(steps));
}

template <class In, Unit kUnit, class Task, class Launch>
void score_long_rows(const Rows& rows, const Task& task, void* states, int multiprocessors, const Launch& launch) {
    const int64_t count = rows.count();
    if (rows.classes <= kWarpRow) {
        constexpr int64_t warps = kThreads / 32;
        launch(long_rows<In, kUnit, 32, Task>, (count + warps - 1) / warps, kThreads, task);
    } else if (cut_into_spans(rows, multiprocessors)) {
        const int spans = int(spans_of<In>(rows));
        auto* lanes = static_cast<Words*>(states);
        launch(row_spans<In, kUnit, Task>, count * spans, kThreads, task, lanes, spans);
        launch(finish_rows<In, kUnit, Task>, count, kThreads, task, lanes, spans);
    } else {
        launch(long_rows<In, kUnit, kThreads, Task>, count, kThreads, task);
    }
}

template <class In, class Task, class Launch>
void launch_scores(const Rows& rows, const Task& task, void* states, int multiprocessors, const Launch& launch) {
    const Unit unit = unit_of<In>(rows);
    if (rows.classes > kShort) {
        if (unit == kUnit16)
            score_long_rows<In, kUnit16>(rows, task, states, multiprocessors, launch);
        else
            score_long_rows<In, kAnywhere>(rows, task, states, multiprocessors, launch);
    } else if (unit == kUnit16) {
        score_short_rows<In, kUnit16>(rows, task, multiprocessors, launch);
    } else if (unit == kUnit8) {
        score_short_rows<In, kUnit8>(rows, task, multiprocessors, launch);
    } else {
        score_short_rows<In, kAnywhere>(rows, task, multiprocessors, launch);
    }
}

inline ScoreTask score_task_of(const Rows& rows, const Targets& targets, void* const out[kSlots]) {
    ScoreTask task{on_device(rows), targets, {}};
    for (int i = 0; i < kSlots; ++i) task.out[i] = out[i];
    return task;
}

template <class In, class Launch>
void score_rows(const Rows& rows, const Targets& targets, void* const out[kSlots], void* states, int multiprocessors,
                const Launch& launch) {
    launch_scores<In>(rows, score_task_of(rows, targets, out), states, multiprocessors, launch);
}

}  // namespace torchassay
