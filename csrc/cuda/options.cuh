// What the kernels know of a loss's options, and what they make of one logit under them: torchassay/options.py.
#pragma once
#include "row_memory.cuh"

namespace torchassay {

struct OptionsOnDevice {
    const float* weight;         // [C], or null
    const float* probabilities;  // [N, C] dense, or null
    const float* temperatures;   // [N], or null: one for all
    float temperature;
    Inverse<float> inverse;      // of it
    float smoothing, even, own;  // even: smoothing / C, own: 1 - smoothing
    float softcap, inverse_cap, z_loss;
};

// Of so many classes, those of all slices.
inline OptionsOnDevice on_device(const Options& options, int64_t classes) {
    const double inverse = 1.0 / options.temperature.value;
    const float high = float(inverse);
    return {static_cast<const float*>(options.weight),
            static_cast<const float*>(options.probabilities),
            static_cast<const float*>(options.temperature.data),
            float(options.temperature.value),
            {high, float(inverse - double(high))},
            float(options.label_smoothing),
            float(options.label_smoothing / double(classes)),
            float(1.0 - options.label_smoothing),
            float(options.softcap),
            options.softcap > 0 ? float(1.0 / options.softcap) : 0.0f,
            float(options.z_loss)};
}

// ---- temperature

TORCHASSAY_DEVICE Inverse<float> inverse_of(const OptionsOnDevice& options, int64_t row) {
    if (!options.temperatures) return options.inverse;
    const float temperature = simt::load(options.temperatures + row), high = 1.0f / temperature;
    return {high, fused(-temperature, high, 1.0f) * high};
}

TORCHASSAY_DEVICE Scale scale_of(const OptionsOnDevice& options, int64_t row) {
    const Inverse<float> inverse = inverse_of(options, row);
    const float temperature = options.temperatures ? simt::load(options.temperatures + row) : options.temperature;
    const float rest = fused(kLog2E, inverse.low, kLog2ELow * inverse.high);
    const float log2e = fused(kLog2E, inverse.high, rest);
    return {log2e, fused(kLog2E, inverse.high, -log2e) + rest, larger(-104.0f * temperature, -3e38f)};
}

// ---- softcap

TORCHASSAY_DEVICE float magnitude(float x) { return as_float(as_bits(x) & 0x7fffffffu); }

struct Capped {
    float v, slope;  // softcap tanh(x / softcap), and 1 - tanh^2
};

// A class at -inf stays there: it is masked. E = e^(-2 |y|) gives tanh |y| = (1 - E) / (1 + E) and its slope 4 E / (1 +
// E)^2; where 1 - E would cancel, Taylor's series gives it.
template <bool kCapped>
TORCHASSAY_DEVICE Capped capped(const OptionsOnDevice& options, float x) {
    if constexpr (!kCapped) return {x, 1.0f};
    const float y = magnitude(x) * options.inverse_cap, s = y * y;
    const float e = simt::exp2_fast(y * (-2.0f * kLog2E)), q = simt::reciprocal_fast(1.0f + e);
    float series = -1382.0f / 155925;
    series = fused(series, s, 62.0f / 2835);
    series = fused(series, s, -17.0f / 315);
    series = fused(series, s, 2.0f / 15);
    series = fused(series, s, -1.0f / 3);
    const float tanh = y < 0.4f ? fused(series * s, y, y) : (1.0f - e) * q;
    const float v = as_float(as_bits(tanh * options.softcap) | (as_bits(x) & 0x80000000u));
    return {magnitude(x) == TORCHASSAY_INFINITY ? x : v, 4.0f * e * q * q};
}

// The same where only the options tell whether there is one.
struct Cap {
    const OptionsOnDevice& options;

    TORCHASSAY_DEVICE Capped operator()(float x) const {
        return options.softcap > 0.0f ? capped<true>(options, x) : capped<false>(options, x);
    }
};

// ---- targets

// kCount neighbouring numbers, `left` of which are there; 0 for the others.
template <int kCount>
TORCHASSAY_DEVICE void load_numbers(float (&out)[kCount], const float* p, int left) {
    const int shift = shift_of(p);
#pragma unroll
    for (int q = 0; q < kCount; q += 4) {
        Vector<float, kAnywhere> fetched;
        if (left > q)
            fetched.fetch(p + q, shift, left - q);
        else
            fetched.fetch_nothing();
        const Words words = fetched.settle(shift, left - q);
#pragma unroll
        for (int i = 0; i < 4; ++i) out[q + i] = q + i < left ? as_float(words.word[i]) : 0.0f;
    }
}

// b of a vector's columns, the first of them `column`, but for what a label adds to its own; 0 beyond the row.
template <int kCount>
TORCHASSAY_DEVICE void spread_target(float (&b)[kCount], const OptionsOnDevice& options, int64_t row, int column,
                                     int classes) {
    const int left = classes - column;
#pragma unroll
    for (int i = 0; i < kCount; ++i) b[i] = i < left ? options.even : 0.0f;
    if (options.probabilities) {
        float t[kCount];
        load_numbers(t, options.probabilities + row * classes + column, left);
#pragma unroll
        for (int i = 0; i < kCount; ++i) b[i] = fused(options.own, t[i], b[i]);
    }
    if (options.weight) {
        float w[kCount];
        load_numbers(w, options.weight + column, left);
#pragma unroll
        for (int i = 0; i < kCount; ++i) b[i] *= w[i];
    }
}

// The same of one column of the row.
TORCHASSAY_DEVICE float spread_entry(const OptionsOnDevice& options, int64_t row, int64_t column, int64_t classes) {
    float b = options.even;
    if (options.probabilities) b = fused(options.own, simt::load(options.probabilities + row * classes + column), b);
    return options.weight ? b * simt::load(options.weight + column) : b;
}

// The label's part of b at its class y.
TORCHASSAY_DEVICE float label_weight(const OptionsOnDevice& options, int64_t y) {
    return options.weight ? options.own * simt::load(options.weight + y) : options.own;
}

}  // namespace torchassay
