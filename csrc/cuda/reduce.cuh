// Reductions over the columns of a lane, and over the lanes that share a row, a power of two of them within a warp or
// all of a block. Every lane gets the result, and the order is a matter of the lanes' numbers alone: the same bits
// every time.
#pragma once
#include "row_memory.cuh"

namespace torchassay {

constexpr int kThreads = 256;  // of every block

struct Larger {
    template <class T>
    TORCHASSAY_DEVICE T operator()(T a, T b) const {
        return a > b ? a : b;
    }
    TORCHASSAY_DEVICE float operator()(float a, float b) const { return larger(a, b); }
};
struct Smaller {
    TORCHASSAY_DEVICE int operator()(int a, int b) const { return a < b ? a : b; }
};
struct Plus {
    TORCHASSAY_DEVICE float operator()(float a, float b) const { return a + b; }
};

// Over `lanes` neighbouring lanes of a warp, the same number for all of a launch: what it skips costs a branch a level.
template <class T, class Operation>
TORCHASSAY_DEVICE T reduce_in_warp(T value, int lanes, Operation operation) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        if (step < lanes) value = operation(value, simt::shuffle_xor(value, step));
    return value;
}

// Over kLanes of a warp or the block (kLanes = kThreads).
template <int kLanes, class T, class Operation>
TORCHASSAY_DEVICE T reduce(T value, Operation operation) {
    value = reduce_in_warp(value, kLanes < 32 ? kLanes : 32, operation);
    if constexpr (kLanes > 32) {
        constexpr int warps = kLanes / 32;
        __shared__ simt::Shared<T, warps> parts;
        simt::sync_block();  // whoever still reads the parts of the reduction before
        if (simt::thread_index() % 32 == 0) parts.write(simt::thread_index() / 32, value);
        simt::sync_block();
        value = parts.read(0);
#pragma unroll
        for (int i = 1; i < warps; ++i) value = operation(value, parts.read(i));
    }
    return value;
}

// The three sums of a row, which travel together.
struct Sums {
    float R, T, Q;
};

// Adds a vector of columns, relative to `reference`, which none of them exceeds.
template <class In, bool kMend, class S>
TORCHASSAY_DEVICE void add_columns(Sums& s, const Words& x, float reference, const S& scale) {
    float R = 0.0f;  // a vector by itself: many small numbers added to a large one would all be rounded alike
#pragma unroll
    for (int i = 0; i < kVector<In>; ++i) {
        float d = element<In>(x, i) - reference;
        const float e = exp_of<kMend>(d, scale);
        R += e;
        s.T = fused(-d, e, s.T);
        s.Q = fused(e, e, s.Q);
    }
    s.R += R;
}

TORCHASSAY_DEVICE Sums sum_in_warp(Sums s, int lanes) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        if (step >= lanes) continue;
        const Sums other{simt::shuffle_xor(s.R, step), simt::shuffle_xor(s.T, step), simt::shuffle_xor(s.Q, step)};
        s = {s.R + other.R, s.T + other.T, s.Q + other.Q};
    }
    return s;
}

template <int kLanes>
TORCHASSAY_DEVICE Sums sum(Sums s) {
    s = sum_in_warp(s, kLanes < 32 ? kLanes : 32);
    if constexpr (kLanes > 32) {
        constexpr int warps = kLanes / 32;
        __shared__ simt::Shared<float, 3 * warps> parts;
        const int warp = simt::thread_index() / 32;
        simt::sync_block();  // as above
        if (simt::thread_index() % 32 == 0) {
            parts.write(warp, s.R);
            parts.write(warps + warp, s.T);
            parts.write(2 * warps + warp, s.Q);
        }
        simt::sync_block();
        s = {parts.read(0), parts.read(warps), parts.read(2 * warps)};
#pragma unroll
        for (int i = 1; i < warps; ++i)
            s = {s.R + parts.read(i), s.T + parts.read(warps + i), s.Q + parts.read(2 * warps + i)};
    }
    return s;
}

}  // namespace torchassay
