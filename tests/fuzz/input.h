// What the fuzzer's bytes say: numbers, choices, and memory that ends where its contents end, so that AddressSanitizer
// sees any access beyond. When the bytes are used up, random numbers that depend on them go on.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "api.h"

#define EXPECT(condition)                                                                \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                                \
        }                                                                                \
    } while (false)

class Input {
public:
    Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}

    uint8_t byte() {
        if (left_) {
            --left_;
            state_ = (state_ ^ *data_) * 0x100000001b3;
            return *data_++;
        }
        state_ = state_ * 6364136223846793005 + 1442695040888963407;
        return uint8_t(state_ >> 56);
    }
    template <class T>
    T raw() {
        uint8_t bytes[sizeof(T)];
        for (uint8_t& each : bytes) each = byte();
        T value;
        std::memcpy(&value, bytes, sizeof(T));
        return value;
    }
    bool coin() { return byte() & 1; }
    int64_t integer(int64_t least, int64_t most) {
        const uint64_t span = uint64_t(most - least) + 1;
        return least + int64_t((span <= 256 ? byte() : raw<uint32_t>()) % span);
    }
    // Mostly a number near 0, now and then one that hurts.
    double real() {
        static const double kExtremes[] = {0.0,   -0.0,  1.0,    1e-30,  1e30,    -1e30,    80.0,      -80.0,
                                           1e4,   -1e4,  1e-45,  3.4e38, -3.4e38, INFINITY, -INFINITY, NAN,
                                           88.73, -104., 5e-324, 1e308,  -1e308,  0.5,      -300.0,    65504.0};
        const uint8_t code = byte();
        if (code < 24) return kExtremes[code];
        return (code - 140) / (code & 1 ? 8.0 : 2.0);
    }
    // Above 0 and finite.
    double positive() { return std::exp(integer(-40, 40) / 8.0); }

    // Memory whose end is exact; its beginning is aligned to `element` alone.
    void* room(int64_t bytes, int64_t element) {
        const int64_t shift = element * integer(0, 3);
        kept_.emplace_back(new char[bytes + shift]);
        return kept_.back().get() + shift;
    }
    template <class T>
    T* room(int64_t count) {
        return static_cast<T*>(room(count * int64_t(sizeof(T)), sizeof(T)));
    }
    template <class T, class Make>
    T* array(int64_t count, const Make& make) {
        T* const found = room<T>(count);
        for (int64_t i = 0; i < count; ++i) found[i] = T(make());
        return found;
    }
    // float, or double where `wide`.
    template <class Make>
    void* numbers(bool wide, int64_t count, const Make& make) {
        if (wide) return array<double>(count, make);
        return array<float>(count, make);
    }

private:
    const uint8_t* data_;
    size_t left_;
    uint64_t state_ = 0xcbf29ce484222325;
    std::vector<std::unique_ptr<char[]>> kept_;
};

inline int64_t element_size(torchassay::Dtype dtype) {
    return dtype == torchassay::Dtype::kFloat64 ? 8 : dtype == torchassay::Dtype::kFloat32 ? 4 : 2;
}

inline double widened(const void* data, torchassay::Dtype dtype, int64_t i) {
    if (dtype == torchassay::Dtype::kFloat64) return static_cast<const double*>(data)[i];
    if (dtype == torchassay::Dtype::kFloat32) return static_cast<const float*>(data)[i];
    const uint32_t half = static_cast<const uint16_t*>(data)[i];
    if (dtype == torchassay::Dtype::kBfloat16) {
        const uint32_t bits = half << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double sign = half & 0x8000 ? -1.0 : 1.0;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

// Logits in any dtype.
inline void* logits(Input& input, torchassay::Dtype dtype, int64_t count) {
    static const uint16_t kHalves[] = {0, 0x8000, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 1, 0x8001};
    if (element_size(dtype) > 2)
        return input.numbers(dtype == torchassay::Dtype::kFloat64, count, [&] { return input.real(); });
    if (dtype == torchassay::Dtype::kFloat16)
        return input.array<uint16_t>(count, [&]() -> uint16_t {
            const uint8_t code = input.byte();
            if (code < 11) return kHalves[code];
            return code & 1 ? uint16_t(0x3800 + 37 * code) : uint16_t(0xb800 + 29 * code);
        });
    return input.array<uint16_t>(count, [&]() -> uint16_t {
        const float value = float(input.real());
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        return uint16_t(bits >> 16);
    });
}
