// Signals of several draws of a row: noisy copies of its logits, or the members of an ensemble.
//
// Nearly all of the work is to make the noise, so the rest is simple: lanes share a row, each makes blocks of four
// words and loads the four logits of a block one by one, at whatever address. A first kernel leaves a state for each
// draw of each row; for the entropy of the mean a second one makes the same noise again.
#pragma once
#include "normal.cuh"
#include "reduce.cuh"

namespace torchassay {

constexpr int kDrawWarpRow = 4096;  // columns; a block shares a longer row. A guess, as no GPU has timed it.
constexpr int kSpanBlocks = 16;     // of a lane, summed from zero: many small numbers added to a large one round alike

// One float32 for each row, or for all where there is no pointer.
struct NumberOnDevice {
    const float* data;
    float value;
    TORCHASSAY_DEVICE float of(int64_t row) const { return data ? simt::load(data + row) : value; }
};

struct DrawTask {
    RowsOnDevice rows;
    const float* top;
    NumberOnDevice std, scale;
    const int64_t* row_id;
    Seed seed;
    int64_t stride;  // between the members of an ensemble
    int draws;
    int log_lanes;  // of the lanes that share a row
    Words* states;  // [N, draws]: the largest value, the entropy, the probability of the largest, its block
    float* out[kDrawSlots];
};

// The values that the softmax of a draw is taken of, by blocks; both kernels get the same bits.
template <class In, bool kNoise>
struct RowDraws {
    const In* row;
    int64_t stride;
    int classes;
    float top, std, scale;
    int64_t id;
    uint64_t key;

    TORCHASSAY_DEVICE RowDraws(const DrawTask& task, int64_t i)
        : row(row_start<In>(task.rows, i)), stride(task.stride), classes(task.rows.classes) {
        if constexpr (kNoise) {
            top = simt::load(task.top + i);
            std = task.std.of(i);
            scale = task.scale.of(i);
            id = task.row_id ? simt::load(task.row_id + i) : i;
            key = seed_value(task.seed);
        }
    }

    // The logits of a block, -inf beyond the row; all noisy draws are of the same.
    TORCHASSAY_DEVICE Columns logits(int block, int draw) const {
        const int first = block_column(block);
        const In* p = row + first;
        if constexpr (!kNoise) p += draw * stride;
        Columns x;
        if (first + 3 * kBlockStride < classes) {
#pragma unroll
            for (int q = 0; q < 4; ++q) x.of[q] = load_logit(p + q * kBlockStride);
        } else {
#pragma unroll
            for (int q = 0; q < 4; ++q)
                x.of[q] = first + q * kBlockStride < classes ? load_logit(p + q * kBlockStride) : -TORCHASSAY_INFINITY;
        }
        return x;
    }

    TORCHASSAY_DEVICE Columns values(const Columns& logits, int block, int draw) const {
        if constexpr (!kNoise) return logits;
        const Columns noise = normals_of(random_words(key, Purpose::kLogitNoise, id, uint32_t(draw), uint32_t(block)));
        Columns y;
#pragma unroll
        for (int q = 0; q < 4; ++q) y.of[q] = fused(std, noise.of[q], logits.of[q] - top) * scale;
        return y;
    }
};

// M is the largest value; over all others, relative to it, S = sum e^(y - M) and T = sum e^(y - M) (M - y): so nothing
// cancels against 1, however confident the draw. `block` is one that holds M.
struct DrawState {
    float M, S, T;
    int block;
};

TORCHASSAY_DEVICE DrawState no_values() { return {-TORCHASSAY_INFINITY, 0.0f, 0.0f, 0}; }

// What values are taken relative to: finite where M is -inf, so that -inf - -inf is no NaN.
TORCHASSAY_DEVICE float reference_of(float M) { return larger_or_nan(M, -3.402823466e38f); }

// Adds the values of a block. The largest of the four and M meet once: the loser joins the sums, which are rescaled
// where it is M. The others of the block are below both or equal.
TORCHASSAY_DEVICE void add_block(DrawState& s, const Columns& y, int block) {
    const float high = larger_or_nan(y.of[0], y.of[1]), also_high = larger_or_nan(y.of[2], y.of[3]);
    const float top = larger_or_nan(high, also_high);
    const float rest[3] = {smaller_or_nan(y.of[0], y.of[1]), smaller_or_nan(y.of[2], y.of[3]),
                           smaller_or_nan(high, also_high)};
    const bool rises = top > s.M;
    const float loser = smaller_or_nan(top, s.M);
    s.M = larger_or_nan(top, s.M);
    s.block = rises ? block : s.block;
    const float reference = reference_of(s.M);
    float d = loser - reference;
    const float e = exp_of<true>(d), factor = select(rises, e, 1.0f);
    float S = e, T = -d * e * select(rises, s.S + 1.0f, 1.0f);
#pragma unroll
    for (int q = 0; q < 3; ++q) {
        float below = rest[q] - reference;
        const float part = exp_of<true>(below);
        S += part;
        T = fused(-below, part, T);
    }
    s.S = fused(factor, s.S, S);
    s.T = fused(factor, s.T, T);
}

TORCHASSAY_DEVICE DrawState merge(const DrawState& a, const DrawState& b) {
    const bool later = b.M > a.M;
    const float M = larger_or_nan(a.M, b.M);
    float d = smaller_or_nan(a.M, b.M) - reference_of(M);
    const float c = exp_of<true>(d), classes = select(later, a.S, b.S) + 1.0f;
    const int block = a.M == b.M ? Smaller{}(a.block, b.block) : later ? b.block : a.block;
    return {M, fused(c, classes, select(later, b.S, a.S)),
            fused(c, fused(-d, classes, select(later, a.T, b.T)), select(later, b.T, a.T)), block};
}

// Over the lanes that share a row; lane 0 has the result.
TORCHASSAY_DEVICE DrawState merge_lanes(DrawState s, int lanes) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        if (step >= lanes) continue;
        s = merge(s, {simt::shuffle_xor(s.M, step), simt::shuffle_xor(s.S, step), simt::shuffle_xor(s.T, step),
                      simt::shuffle_xor(s.block, step)});
    }
    if (lanes > 32) {
        constexpr int warps = kThreads / 32;
        __shared__ simt::Shared<float, 3 * warps> parts;
        __shared__ simt::Shared<int, warps> blocks;
        const int warp = simt::thread_index() / 32;
        if (simt::thread_index() % 32 == 0) {
            parts.write(warp, s.M);
            parts.write(warps + warp, s.S);
            parts.write(2 * warps + warp, s.T);
            blocks.write(warp, s.block);
        }
        simt::sync_block();
        if (simt::thread_index() == 0)
            for (int i = 1; i < warps; ++i)
                s = merge(s, {parts.read(i), parts.read(warps + i), parts.read(2 * warps + i), blocks.read(i)});
    }
    return s;
}

// The blocks of a lane: calls add(block) for those of a span after the other, and finish_span() behind each.
template <class Add, class Finish>
TORCHASSAY_DEVICE void for_spans(int classes, int lane, int lanes, const Add& add, const Finish& finish_span) {
    const int blocks = blocks_of(classes);
    for (int block = lane; block < blocks;) {
        const int end = Smaller{}(blocks, block + kSpanBlocks * lanes);
#pragma unroll 1
        for (; block < end; block += lanes) add(block);
        finish_span();
    }
}

template <class In, bool kNoise>
__global__ void __launch_bounds__(kThreads) draw_states(DrawTask task) {
    const int lanes = 1 << task.log_lanes, lane = simt::thread_index() & (lanes - 1);
    const int64_t group = simt::block_index() * (kThreads >> task.log_lanes) + (simt::thread_index() >> task.log_lanes);
    const int64_t last = task.rows.count * task.draws - 1, at = group < last ? group : last;
    const int64_t row = at / task.draws;
    const int draw = int(at - row * task.draws);
    const RowDraws<In, kNoise> draws(task, row);
    DrawState all = no_values(), span = no_values();
    for_spans(
        draws.classes, lane, lanes,
        [&](int block) { add_block(span, draws.values(draws.logits(block, draw), block, draw), block); },
        [&] {
            all = merge(all, span);
            span = no_values();
        });
    all = merge_lanes(all, lanes);
    if (lane != 0 || group > last) return;
    const float c = 1.0f / (1.0f + all.S), poison = all.M - all.M;  // NaN for +inf, and where all are -inf
    const float entropy = fused(all.T, c, log1p_nonnegative(all.S, c)) + poison;
    simt::store_16(task.states + at, {{as_bits(all.M), as_bits(entropy), as_bits(c + poison), uint32_t(all.block)}});
}

TORCHASSAY_DEVICE float mean_entropy(const DrawTask& task, int64_t row) {
    float sum = 0.0f;
    for (int t = 0; t < task.draws; ++t)
        sum += as_float(simt::load_16_written(task.states + row * task.draws + t).word[1]);
    return sum / float(task.draws);
}

// The mean entropy alone, a row a thread.
static __global__ void __launch_bounds__(kThreads) mean_entropies(DrawTask task) {
    const int64_t row = simt::block_index() * kThreads + simt::thread_index();
    if (row < task.rows.count) task.out[kNoisyEntropy][row] = mean_entropy(task, row);
}

// -p ln p
TORCHASSAY_DEVICE float entropy_term(float p) { return select(p == 0.0f, 0.0f, -p * natural_log(p)); }

// The entropy of the mean of the draws, whose largest class k is that of the first draw wherever the mean is confident.
template <class In, bool kNoise>
__global__ void __launch_bounds__(kThreads) draw_mixtures(DrawTask task) {
    const int lanes = 1 << task.log_lanes, lane = simt::thread_index() & (lanes - 1);
    const int64_t group = simt::block_index() * (kThreads >> task.log_lanes) + (simt::thread_index() >> task.log_lanes);
    const int64_t last = task.rows.count - 1, row = group < last ? group : last;
    const RowDraws<In, kNoise> draws(task, row);
    const Words* states = task.states + row * task.draws;
    const Words first = simt::load_16_written(states);
    const float share = 1.0f / float(task.draws);
    Sums all{0.0f, 0.0f, 0.0f}, span = all;  // over j != k, of pbar_j and of -pbar_j ln pbar_j; and pbar_k
    for_spans(
        draws.classes, lane, lanes,
        [&](int block) {
            Columns x, y, mean{};
            if constexpr (kNoise) x = draws.logits(block, 0);
#pragma unroll 1
            for (int t = task.draws - 1; t >= 0; --t) {  // the first draw last: its values are needed below
                if constexpr (!kNoise) x = draws.logits(block, t);
                y = draws.values(x, block, t);
                const Words state = simt::load_16_written(states + t);
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    float d = y.of[q] - as_float(state.word[0]);
                    const float e = exp_of<true>(d);
                    mean.of[q] = fused(e, as_float(state.word[2]), mean.of[q]);
                }
            }
            bool sought = block == int(first.word[3]);
            float s = 0.0f, h = 0.0f;
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                float p = mean.of[q] * share;
                if (sought && y.of[q] == as_float(first.word[0])) {
                    sought = false;
                    all.Q = p;
                    p = 0.0f;
                }
                s += p;
                h += entropy_term(p);
            }
            span.R += s;
            span.T += h;
        },
        [&] {
            all.R += span.R;
            all.T += span.T;
            span = {0.0f, 0.0f, 0.0f};
        });
    all = lanes > 32 ? sum<kThreads>(all) : sum_in_warp(all, lanes);
    if (lane != 0 || group > last) return;
    const float s = all.R, c = 1.0f - s;
    const float top = s < 0.5f ? c * log1p_nonnegative(s / c, c) : entropy_term(all.Q);  // log1p(s / c) = -log1p(-s)
    const float mixture = top + all.T, mean = mean_entropy(task, row);
    if (task.out[kNoisyEntropy]) task.out[kNoisyEntropy][row] = mean;
    if (task.out[kPredictiveEntropy]) task.out[kPredictiveEntropy][row] = mixture;
    if (task.out[kMutualInformation]) task.out[kMutualInformation][row] = larger_or_nan(mixture - mean, 0.0f);
}

inline int64_t draw_states_bytes(const Rows& rows, const Draws& draws) {
    return rows.count() * draws.count * int64_t(sizeof(Words));
}

// From 8 lanes on, which make the columns of 32, as many as have 8 blocks each.
inline int log_lanes_of(int64_t classes) {
    if (classes > kDrawWarpRow) return 8;
    int log_lanes = 3;
    while (log_lanes < 5 && blocks_of(classes) > 8 << log_lanes) ++log_lanes;
    return log_lanes;
}

template <class In, bool kNoise, class Launch>
void score_draws(const DrawTask& task, const Launch& launch) {
    const int64_t rows = task.rows.count, groups = kThreads >> task.log_lanes;
    launch(draw_states<In, kNoise>, (rows * task.draws + groups - 1) / groups, kThreads, task);
    if (task.out[kPredictiveEntropy] || task.out[kMutualInformation])
        launch(draw_mixtures<In, kNoise>, (rows + groups - 1) / groups, kThreads, task);
    else
        launch(mean_entropies, (rows + kThreads - 1) / kThreads, kThreads, task);
}

template <class In, class Launch>
void score_draws(const Rows& rows, const Draws& draws, void* const out[kDrawSlots], void* workspace,
                 const Launch& launch) {
    const auto number = [](const Number& n) {
        return NumberOnDevice{static_cast<const float*>(n.data), float(n.value)};
    };
    if (draws.count > INT32_MAX) throw std::runtime_error("torchassay: the CUDA kernels count draws in 31 bits");
    DrawTask task{on_device(rows),
                  static_cast<const float*>(draws.top),
                  number(draws.std),
                  number(draws.scale),
                  draws.row_id,
                  draws.seed,
                  draws.stride,
                  int(draws.count),
                  log_lanes_of(rows.classes),
                  static_cast<Words*>(workspace),
                  {}};
    for (int i = 0; i < kDrawSlots; ++i) task.out[i] = static_cast<float*>(out[i]);
    if (task.top)
        score_draws<In, true>(task, launch);
    else
        score_draws<In, false>(task, launch);
}

}  // namespace torchassay
