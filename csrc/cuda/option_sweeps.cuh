// Scores of rows that more is asked of than a temperature, class weights and a z-loss: more sums over the classes, for
// label smoothing and class probabilities, or other logits, under a softcap.
//
// A group of lanes walks its row in sweeps, from the caches after the first: for the tops, for the sums, and for the
// norm of the gradient where the sums do not give it.
#pragma once
#include "option_output.cuh"
#include "row_scores.cuh"

namespace torchassay {

constexpr int64_t kEighthWarpRow = 256;  // up to so many columns 8 lanes sweep a row

// The largest logit, the lowest column that holds it, and the second largest.
struct RowTops {
    float m, u;
    int k;
};

template <class In, Unit kUnit, int kLanes>
TORCHASSAY_DEVICE RowTops tops_of(const Walk<In, kUnit, kLanes>& walk, int lane, int steps) {
    using P = Packed<In>;
    uint32_t m = P::kMinusInfinity, u = P::kMinusInfinity;
    float best = -TORCHASSAY_INFINITY;
    int at = 0;  // the step that met it first
    for (int step = 0; step < steps; ++step) {
        const Words x = walk.read(step, lane);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            u = P::larger(u, P::smaller(m, x.word[q]));
            m = P::larger(m, x.word[q]);
        }
        const float highest = largest_part<In>(m);
        if (highest > best) best = highest, at = step;
    }
    Tops own{P::part(m, 0), P::part(u, 0)};
    if (kPerWord<In> == 2) own = join(own, {P::part(m, 1), P::part(u, 1)});
    const float top = reduce<kLanes>(best, Larger{});
    int k = kNoColumn;
    if (best == top) {
        const Words x = walk.read(at, lane);
#pragma unroll
        for (int i = kVector<In> - 1; i >= 0; --i)
            if (element<In>(x, i) == top) k = walk.column(at, lane) + i;
    }
    k = reduce<kLanes>(k, Smaller{});
    if (k == kNoColumn) k = 0;  // nothing but NaN
    const bool owner = lane == k / kVector<In> % kLanes;
    return {top, reduce<kLanes>(owner ? own.u : best, Larger{}), k};
}

// The top class, or the first that is no number, if R tells that there may be one.
template <class In, Unit kUnit, int kLanes>
TORCHASSAY_DEVICE int prediction_of(const Walk<In, kUnit, kLanes>& walk, int lane, int k, float R) {
    // all rows of a warp look for a NaN, if one of them has any
    const int sound = reduce<(kLanes < 32 ? 32 : kLanes)>(int(R == R), Smaller{});
    if (sound) return k;
    const int unordered = first_nan(walk, lane);
    return unordered == kNoColumn ? k : unordered;
}

// The sums of a row relative to u, its top clamped to it, and those of the target without a label's own part.
struct TargetSums {
    Sums s;
    float rest, gap;  // of b and of b (u - v) over all classes but the top
    float S;          // under a softcap of (slope_j e_j)^2 over all classes but the top and the label's
};

// What the sweeps know of their row.
template <class In, Unit kUnit, int kLanes, bool kCapped>
struct Sweep {
    const OptionsOnDevice& options;
    const Walk<In, kUnit, kLanes>& walk;
    int64_t row;
    int lane, steps;
    int k, y;         // the top class, and that of a label or -1
    float reference;  // u, or where there is none any that is finite
    Scale scale;

    TORCHASSAY_DEVICE TargetSums sums(bool spread) const {
        TargetSums all{{0.0f, 0.0f, 0.0f}, 0.0f, 0.0f, 0.0f};
        const bool labelled = !options.probabilities;
        for (int step = 0; step < steps; ++step) {
            const Words x = walk.read(step, lane);
            const int first = walk.column(step, lane), left = walk.classes - first;
            float b[kVector<In>] = {};
            if (spread) spread_target(b, options, row, first, walk.classes);
            TargetSums part{{0.0f, 0.0f, 0.0f}, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < kVector<In>; ++i) {
                const Capped c = capped<kCapped>(options, element<In>(x, i));
                float d = smaller_or_nan(c.v - reference, 0.0f);
                if (spread) {
                    const float others = first + i == k ? 0.0f : b[i];
                    part.rest += others;
                    // a label's b of 0 takes no part, also at -inf, as no column beyond the row does
                    part.gap += others == 0.0f && (labelled || i >= left) ? 0.0f : others * -d;
                }
                const float e = exp_of<Packed<In>::kMend>(d, scale);
                part.s.R += e;
                part.s.T = fused(-d, e, part.s.T);
                part.s.Q = fused(e, e, part.s.Q);
                if (!kCapped) continue;
                const float steep = first + i == k || first + i == y ? 0.0f : e * c.slope;
                part.S = fused(steep, steep, part.S);
            }
            const Sums s{all.s.R + part.s.R, all.s.T + part.s.T, all.s.Q + part.s.Q};
            all = {s, all.rest + part.rest, all.gap + part.gap, all.S + part.S};
        }
        const Sums s = sum<kLanes>(all.s);
        all.s = {s.R - 1.0f, s.T, s.Q - 1.0f};  // the top's e^0, which is exact
        if (kCapped) all.S = reduce<kLanes>(all.S, Plus{});
        if (!spread) return all;
        return {all.s, reduce<kLanes>(all.rest, Plus{}), reduce<kLanes>(all.gap, Plus{}), all.S};
    }

    // The root of the sum of (slope_j (beta p_j - b_j))^2. No entry exceeds `bound`, and in its units none of a
    // confident row underflows. A label adds `weight` to b at y.
    TORCHASSAY_DEVICE float norm(const Finished<float>& f, const LinearLoss<float>& loss, const LinearTarget<float>& t,
                                 float weight) const {
        const float top = top_entry(f.c, f.r, loss.rest, loss.beta, t.top), w = f.z * f.c;
        const float bound = magnitude(top) + magnitude(loss.beta) * w + t.rest;
        const float unit = bound > 0.0f ? smaller(1.0f / bound, 1e37f) : 1.0f;
        float squares = 0.0f;
        for (int step = 0; step < steps; ++step) {
            const Words x = walk.read(step, lane);
            const int first = walk.column(step, lane);
            float b[kVector<In>];
            spread_target(b, options, row, first, walk.classes);
            if (y >= first && y < first + kVector<In>) {
#pragma unroll
                for (int i = 0; i < kVector<In>; ++i) b[i] += first + i == y ? weight : 0.0f;
            }
            float part = 0.0f;
#pragma unroll
            for (int i = 0; i < kVector<In>; ++i) {
                const Capped c = capped<kCapped>(options, element<In>(x, i));
                float d = smaller_or_nan(c.v - reference, 0.0f);
                const float p = exp_of<Packed<In>::kMend>(d, scale) * w;
                const float entry = (first + i == k ? top : fused(loss.beta, p, -b[i])) * c.slope * unit;
                part = fused(entry, entry, part);
            }
            squares += part;
        }
        return square_root(reduce<kLanes>(squares, Plus{})) / unit;
    }
};

// The norm for a label alone under a softcap; S as in Sweep::sums.
TORCHASSAY_DEVICE float capped_norm(const OptionsOnDevice& options, const Finished<float>& f, float S,
                                    const LinearLoss<float>& loss, const LinearTarget<float>& t,
                                    const Labelled<float>& l, bool is_top, float raw_top, float raw_y) {
    const float top = top_entry(f.c, f.r, loss.rest, loss.beta, t.top) * capped<true>(options, raw_top).slope;
    const float own = fused(loss.beta, l.e_y * f.c, -t.rest) * capped<true>(options, raw_y).slope;
    return hypotenuse(hypotenuse(top, is_top ? 0.0f : own), loss.beta * (f.z * f.c) * square_root(S));
}

// From a row to its signals. Lane 0 writes them, if the row is its group's `own`: not beyond the last one.
template <bool kCapped, class In, Unit kUnit, int kLanes>
TORCHASSAY_DEVICE void sweep_row(const OptionTask& task, const Walk<In, kUnit, kLanes>& walk, int64_t row, int lane,
                                 int steps, int64_t own) {
    const OptionsOnDevice& options = task.options;
    const float infinity = TORCHASSAY_INFINITY;
    Target target = look_up(task, walk.row, row);
    target.known = target.known || options.probabilities;
    target.logit = capped<kCapped>(options, target.logit).v;

    const RowTops tops = tops_of(walk, lane, steps);
    const float m = capped<kCapped>(options, tops.m).v;
    const float u = smaller(capped<kCapped>(options, tops.u).v, m);
    // Of classes that tie for the top any may be it: the label, as for row_stats.h.
    const int k = target.y >= 0 && target.logit == m ? target.y : tops.k;
    const Sweep<In, kUnit, kLanes, kCapped> sweep{
        options, walk, row, lane, steps, k, target.y, larger(u, kLowest), scale_of(options, row)};
    const bool spread = options.probabilities || (task.targets.data && options.smoothing != 0.0f);
    const TargetSums sums = sweep.sums(spread);

    const Inverse<float> inverse = inverse_of(options, row);
    const RowState<float> state{m, u, sums.s.R, sums.s.T * inverse.high, sums.s.Q};
    const Finished<float> f = finish(state, inverse, infinity);
    const Labelled<float> l = label(f, target.logit, inverse, infinity);
    const float weight = target.y >= 0 ? label_weight(options, target.y) : 0.0f;
    const float top = spread ? spread_entry(options, row, k, walk.classes) : 0.0f;
    LinearTarget<float> t{sums.rest, sums.gap * inverse.high, top};
    if (target.y >= 0) t = add_label(t, f, l, weight);
    const LinearLoss<float> loss = linear_loss(f, t, options.z_loss);
    float norm = 0.0f;
    if (task.out[kGradNorm]) {
        if (!kCapped && !options.weight && !options.probabilities)
            norm = smoothed_norm(f, state, l, options.smoothing, float(walk.classes), 2.0f * options.z_loss * f.lse);
        else if (spread)
            norm = sweep.norm(f, loss, t, weight);
        else {  // the label's logit is read again: no register holds it through the sweeps
            const float raw = target.y >= 0 ? load_logit(walk.row + target.y) : 0.0f;
            const float raw_top = target.y == k ? raw : tops.m;  // far beyond the cap tops tie whose slopes differ
            norm = capped_norm(options, f, sums.S, loss, t, l, target.y == k, raw_top, raw);
        }
    }
    const int prediction = task.out[kPrediction] ? prediction_of(walk, lane, tops.k, sums.s.R) : tops.k;
    if (lane == 0 && own == row)
        write_option_row(task, row, f, state, target, l, loss, inverse.high * norm, prediction);
}

template <class In, Unit kUnit, int kLanes, bool kCapped, class Task>
__global__ void __launch_bounds__(kThreads, 3) swept_rows(Task task) {
    const int lane = simt::thread_index() % kLanes, classes = task.rows.classes;
    const int64_t own = simt::block_index() * (kThreads / kLanes) + simt::thread_index() / kLanes;
    const int64_t last = task.rows.count - 1, row = own < last ? own : last;  // beyond the last row: that one again
    const Walk<In, kUnit, kLanes> walk{row_start<In>(task.rows, row), classes};
    const int steps = (classes + kLanes * kVector<In> - 1) / (kLanes * kVector<In>);
    sweep_row<kCapped>(task, walk, row, lane, steps, own);
}

template <class In, Unit kUnit, bool kCapped, class Task, class Launch>
void sweep_rows_at(const Task& task, const Launch& launch) {
    const int64_t count = task.rows.count, classes = task.rows.classes;
    const auto blocks = [&](int64_t rows) { return (count + rows - 1) / rows; };
    if (classes <= kEighthWarpRow)
        launch(swept_rows<In, kUnit, 8, kCapped, Task>, blocks(kThreads / 8), kThreads, task);
    else if (classes <= kWarpRow)
        launch(swept_rows<In, kUnit, 32, kCapped, Task>, blocks(kThreads / 32), kThreads, task);
    else
        launch(swept_rows<In, kUnit, kThreads, kCapped, Task>, count, kThreads, task);
}

template <class In, class Task, class Launch>
void sweep_rows(const Rows& rows, const Task& task, const Launch& launch) {
    if (task.options.softcap > 0.0f)  // its arithmetic hides what rows that start anywhere cost
        return sweep_rows_at<In, kAnywhere, true>(task, launch);
    if (unit_of<In>(rows) == kUnit16) return sweep_rows_at<In, kUnit16, false>(task, launch);
    sweep_rows_at<In, kAnywhere, false>(task, launch);
}

}  // namespace torchassay
