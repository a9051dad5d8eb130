// Normal numbers from random words, and the natural logarithm that they and the entropies take.
//
// All of it is +, -, *, fused, square_root and integer arithmetic: the same bits on every device and on the host. A
// normal is within 1e-6 of the exact one of its words, about 26 instructions beside them.
#pragma once
#include "../api.h"
#include "../philox.h"
#include "row_math.cuh"

namespace torchassay {

TORCHASSAY_DEVICE uint64_t seed_value(const Seed& seed) { return seed.data ? simt::load(seed.data) : seed.value; }

// ln x of a normal number in (0, 1], relative error 1.4e-7 also where x is near 1. x = 2^n (1 + f) with 1 + f in
// [sqrt 1/2, sqrt 2); ln(1 + f) = f (1 + f P(f)), P the minimax polynomial of degree 7.
TORCHASSAY_DEVICE float natural_log(float x) {
    constexpr uint32_t sqrt_half = 0x3f3504f3u;
    const uint32_t exponent = (as_bits(x) - sqrt_half) & 0xff800000u;  // n 2^23
    const float f = as_float(as_bits(x) - exponent) - 1.0f;
    float p = 0.0897953212f;
    p = fused(p, f, -0.144268811f);
    p = fused(p, f, 0.148836821f);
    p = fused(p, f, -0.165517882f);
    p = fused(p, f, 0.199634776f);
    p = fused(p, f, -0.250025839f);
    p = fused(p, f, 0.333339334f);
    p = fused(p, f, -0.499999821f);
    return fused(float(int32_t(exponent)), kLn2 * 0x1p-23f, f * fused(p, f, 1.0f));
}

// Two normals by Box and Muller's polar method: the cosine's and the sine's.
struct NormalPair {
    float cosine, sine;
};

TORCHASSAY_DEVICE NormalPair normal_pair(uint32_t even, uint32_t odd) {
    // ((even >> 9) + 1/2) 2^-23 is exact: of 1.xxx with these 23 bits, 1 - 2^-24 is taken off.
    const float u = as_float(even >> 9 | 0x3f800000u) - (1.0f - 0x1p-24f);
    const float radius = square_root(-2.0f * natural_log(u));
    // The angle 2 pi odd 2^-32 is a quarter turn times the quadrant, and t pi / 4 with t in [-1, 1).
    const uint32_t turned = odd + 0x20000000u;  // its two top bits are the quadrant
    const float t = float(int32_t(odd << 2)) * 0x1p-31f, z = t * t;
    float sine = -3.58772595e-5f;
    sine = fused(sine, z, 2.48987204e-3f);
    sine = fused(sine, z, -8.07453692e-2f);
    sine = fused(sine, z, 0.785398126f) * t;
    float cosine = 3.53133446e-6f;
    cosine = fused(cosine, z, -3.25942005e-4f);
    cosine = fused(cosine, z, 1.58543270e-2f);
    cosine = fused(cosine, z, -0.308425128f);
    cosine = fused(cosine, z, 1.0f);
    const bool swapped = turned & 0x40000000u;
    constexpr uint32_t sign = 0x80000000u;
    const uint32_t cosine_bits = as_bits(select(swapped, sine, cosine)) ^ ((turned + 0x40000000u) & sign);
    const uint32_t sine_bits = as_bits(select(swapped, cosine, sine)) ^ (turned & sign);
    return {radius * as_float(cosine_bits), radius * as_float(sine_bits)};
}

// A row's columns go to blocks of four words: block n serves this column and those 8, 16 and 24 after it. So eight
// neighbouring columns are of neighbouring blocks, and their words are in the same place.
constexpr int kBlockStride = 8;
template <class Integer>
TORCHASSAY_HD Integer block_column(Integer n) {
    return (n & ~Integer(7)) * 4 + (n & 7);
}
template <class Integer>
TORCHASSAY_HD Integer blocks_of(Integer columns) {
    return (columns + 31) / 32 * 8;
}

// A number for each of a block's columns.
struct Columns {
    float of[4];
};

TORCHASSAY_DEVICE Columns normals_of(const RandomWords& words) {
    const NormalPair first = normal_pair(words.word[0], words.word[1]);
    const NormalPair second = normal_pair(words.word[2], words.word[3]);
    return {{first.cosine, first.sine, second.cosine, second.sine}};
}

}  // namespace torchassay
