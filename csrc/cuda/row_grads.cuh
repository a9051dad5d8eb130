// Gradients of the loss and the entropy of rows of logits: one read, one write, no reduction.
//
//     dx_j = gL p_j + gH p_j (a_j - mu),   dx_y = -gL miss + gH p_y (a_y - mu),   a_j = m - x_j
//
// p_j is e^(x_j - u) z / (1 + r) for every class but the top: m - x_j of a confident row is rounded, x_j - u of the
// classes that matter is not. A thread writes vectors of 16 bytes of the dense output, across the end of a row if it
// must; nothing depends on where they lie.
#pragma once
#include "reduce.cuh"
#include "row_output.cuh"

namespace torchassay {

constexpr int kVectorsOfThread = 4;  // what a row's terms cost is shared by these, if they lie in one row

struct GradTask {
    static constexpr int kBlocks = 4;  // that a multiprocessor is to hold

    RowsOnDevice rows;
    Targets targets;
    const float* stats;  // [6, count], [7, count] under options
    Upstream grad_loss, grad_entropy;
    void* out;            // [count, classes] dense
    uint64_t reciprocal;  // (2^64 - 1) / classes
    bool dense;           // the rows lie as the output does, on 16 bytes
};

// What a row's gradient is made of.
struct RowTerms {
    float u, g;    // point of reference, and m - u
    float c, w;    // p of the top class; factor of e^(x_j - u) for the others
    float gL, gH;  // upstream
    float mu, miss;
    int64_t y;      // -1: no entry of a target
    uint32_t keep;  // 0 for a row that is ignored and has no gradient of the entropy: it is 0 even if poisoned

    // The gradient of any class but the target.
    template <bool kMend>
    TORCHASSAY_DEVICE float entry(float x, float gL_here) const {
        const float difference = x - u;
        const bool top = difference > 0.0f;
        float d = smaller_or_nan(difference, 0.0f);
        const float e = exp_of<kMend>(d);
        return select(top, c, e * w) * fused(gH, (top ? 0.0f : g - d) - mu, gL_here);
    }
};

TORCHASSAY_DEVICE float upstream_of(const Upstream& g, int64_t row) {
    return g.data ? simt::load(static_cast<const float*>(g.data) + row * g.stride) : 0.0f;
}

TORCHASSAY_DEVICE RowTerms terms_of(const GradTask& task, int64_t row) {
    const int64_t n = task.rows.count;
    const float* stats = simt::computed(task.stats + row);
    const float m = simt::load(stats), u = simt::load(stats + n), z = simt::load(stats + 2 * n);
    const float r = simt::load(stats + 3 * n), miss = simt::load(stats + 4 * n), mu = simt::load(stats + 5 * n);
    const bool lone = u == -TORCHASSAY_INFINITY;
    const float reference = lone ? m : u;  // without a rest the top is its own point of reference
    const float c = 1.0f / (1.0f + r);
    const float g = smaller_or_nan(m - reference, 128.0f);  // z is 0 from 88 on: no inf * 0
    RowTerms t{
        reference, g,  c,  lone ? c : z * c, upstream_of(task.grad_loss, row), upstream_of(task.grad_entropy, row), mu,
        miss,      -1, ~0u};
    if (!task.grad_loss.data) return t;
    const int64_t y = target_of(task.targets, row);
    if (y == task.targets.ignore_index) {
        t.gL = 0.0f;
        if (!task.grad_entropy.data) return {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, -1, 0u};
    } else if (y < 0 || y >= task.rows.classes) {
        t.c = t.w = TORCHASSAY_INFINITY - TORCHASSAY_INFINITY;
    } else {
        t.y = y;
    }
    return t;
}

// The gradients of elements [begin, end) of a vector whose element 0 is column `column` of the row.
template <class In>
TORCHASSAY_DEVICE void fill(float (&g)[kVector<In>], const GradTask&, const RowTerms& t, const Words& x, int column,
                            int begin, int end) {
    constexpr bool mend = Packed<In>::kMend;
    const Words kept{{x.word[0] & t.keep, x.word[1] & t.keep, x.word[2] & t.keep, x.word[3] & t.keep}};
#pragma unroll
    for (int i = 0; i < kVector<In>; ++i)
        if (i >= begin && i < end) g[i] = t.entry<mend>(element<In>(kept, i), t.gL);
    const int64_t at = t.y - column;
    if (t.y < 0 || at < begin || at >= end) return;
    float logit = 0.0f;  // of the target, where p_y - 1 must not be formed
#pragma unroll
    for (int i = 0; i < kVector<In>; ++i) logit = i == at ? element<In>(x, i) : logit;
    const float own = fused(-t.gL, t.miss, t.entry<mend>(logit, 0.0f));
#pragma unroll
    for (int i = 0; i < kVector<In>; ++i) g[i] = i == at ? own : g[i];
}

// Where a vector of the output begins.
struct Spot {
    int64_t row;
    int column;
};

TORCHASSAY_DEVICE Spot spot_of(const GradTask& task, int64_t first) {
    const int classes = task.rows.classes;
    int64_t row = int64_t(simt::multiply_high(uint64_t(first), task.reciprocal));  // one too small at most
    int64_t column = first - row * classes;
    if (column >= classes) column -= classes, ++row;
    return {row, int(column)};
}

// The logits that belong to a vector of the output; beyond the last row anything.
template <class In>
TORCHASSAY_DEVICE Words logits_of(const GradTask& task, int64_t first, int64_t total, Spot at) {
    constexpr int width = kVector<In>;
    Words x{{0u, 0u, 0u, 0u}};
    if (task.dense && first + width <= total) return simt::load_16_once(static_cast<const In*>(task.rows.data) + first);
    if (at.column + width <= task.rows.classes && first < total) {
        const In* p = row_start<In>(task.rows, at.row) + at.column;
        Vector<In, kAnywhere> fetched;
        fetched.fetch(p, shift_of(p), width);
        return fetched.settle(shift_of(p), width);
    }
#pragma unroll
    for (int i = 0; i < width; ++i) {
        if (first + i < total) {
            const uint32_t bits = load_bits(row_start<In>(task.rows, at.row) + at.column);
            x.word[i / kPerWord<In>] |= i % kPerWord<In> ? bits << 16 : bits;
        }
        if (++at.column == task.rows.classes) at.column = 0, ++at.row;
    }
    return x;
}

template <class In, class Task>
__global__ void __launch_bounds__(kThreads, Task::kBlocks) grad_vectors(Task task) {
    constexpr int width = kVector<In>;
    const int classes = task.rows.classes;
    const int64_t total = task.rows.count * classes;
    const int64_t warp = simt::block_index() * (kThreads / 32) + simt::thread_index() / 32;
    int64_t first = (warp * kVectorsOfThread * 32 + simt::thread_index() % 32) * width;
    if (first >= total) return;
    Spot at = spot_of(task, first);
    auto terms = terms_of(task, at.row);
    int64_t row_of_terms = at.row;
    Words x = logits_of<In>(task, first, total, at);
    for (int v = 0; v < kVectorsOfThread && first < total; ++v) {
        // the next vector's logits arrive meanwhile
        const int64_t next = first + 32 * width;
        const bool same = at.column + 32 * width < classes;
        const Spot next_at = same ? Spot{at.row, at.column + 32 * width} : spot_of(task, next);
        Words next_x{{0u, 0u, 0u, 0u}};
        if (v + 1 < kVectorsOfThread && next < total) next_x = logits_of<In>(task, next, total, next_at);

        if (at.row != row_of_terms) terms = terms_of(task, at.row), row_of_terms = at.row;
        float g[width] = {};
        if (at.column + width <= classes) {
            fill<In>(g, task, terms, x, at.column, 0, width);
        } else {  // rows end within the vector
            for (int begin = 0; begin < width && at.row < task.rows.count; at = {at.row + 1, 0}) {
                if (at.row != row_of_terms) terms = terms_of(task, at.row), row_of_terms = at.row;
                const int left = classes - at.column, end = left < width - begin ? begin + left : width;
                fill<In>(g, task, terms, x, at.column - begin, begin, end);
                begin = end;
            }
        }
        Words packed;
#pragma unroll
        for (int q = 0; q < 4; ++q)
            packed.word[q] = Packed<In>::pack(g[q * kPerWord<In>], g[q * kPerWord<In> + kPerWord<In> - 1]);
        In* out = static_cast<In*>(task.out) + first;
        if (first + width <= total) {
            simt::store_16(out, packed);
        } else {
#pragma unroll
            for (int i = 0; i < width; ++i)
                if (first + i < total) store_bits(out + i, packed.word[i / kPerWord<In>] >> (i % kPerWord<In> * 16));
        }
        first = next;
        at = next_at;
        x = next_x;
    }
}

inline GradTask grad_task_of(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
                             const Upstream& grad_entropy, void* out) {
    const RowsOnDevice place = on_device(rows);
    const bool in_line = rows.count() == 1 || (place.folded && place.inner_stride == rows.classes);
    return {place,        targets, static_cast<const float*>(stats),      grad_loss,
            grad_entropy, out,     ~uint64_t(0) / uint64_t(rows.classes), in_line && uintptr_t(rows.data) % 16 == 0};
}

template <class In, class Task, class Launch>
void launch_grads(const Rows& rows, const Task& task, const Launch& launch) {
    const int64_t vectors = (rows.count() * rows.classes + kVector<In> - 1) / kVector<In>;
    constexpr int64_t per_block = kThreads * kVectorsOfThread;
    launch(grad_vectors<In, Task>, (vectors + per_block - 1) / per_block, kThreads, task);
}

template <class In, class Launch>
void grad_rows(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
               const Upstream& grad_entropy, void* out, const Launch& launch) {
    launch_grads<In>(rows, grad_task_of(rows, targets, stats, grad_loss, grad_entropy, out), launch);
}

}  // namespace torchassay
