// The contract's arithmetic (csrc/cuda/simt.cuh) on the host.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace torchassay::simt {

// Prints its one line and ends the program; in simt.h.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float square_root(float x) { return std::sqrt(x); }
inline uint64_t multiply_high(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)a * b >> 64); }
inline uint32_t funnel_right(uint32_t low, uint32_t high, int bits) {
    if (bits < 0 || bits > 31) fail("funnel_right by %d", bits);
    return uint32_t((uint64_t(high) << 32 | low) >> bits);
}

// The nearest number, then up to 2 ulp off, as the hardware's may be; the argument's bits choose how far.
inline float exp2_fast(float x) {
    const float nearest = float(std::exp2(double(x)));
    if (!std::isfinite(nearest) || std::abs(x) < 0x1p-126f) return nearest;
    const int off = int((as_bits(x) * 2654435761u >> 16) % 5) - 2;
    const int bits = int(as_bits(nearest)) + off;
    return bits < 0x00800000 ? 0 : as_float(uint32_t(bits));
}

// Likewise, up to 1 ulp off.
inline float reciprocal_fast(float x) {
    const float nearest = 1 / x;
    if (!std::isfinite(nearest)) return nearest;
    return as_float(as_bits(nearest) + (as_bits(x) * 2654435761u >> 16) % 3 - 1);
}

inline float larger(float a, float b) { return std::fmax(a, b); }
inline float smaller(float a, float b) { return std::fmin(a, b); }
inline float larger_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : larger(a, b); }
inline float smaller_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : smaller(a, b); }

inline float widen_f16(uint16_t bits) {
    // exponent and mantissa moved into place, rebiased by a multiply, which also handles subnormals
    const uint32_t magnitude = uint32_t(bits & 0x7fff) << 13, sign = uint32_t(bits & 0x8000) << 16;
    const uint32_t infinite = magnitude >= 0x0f800000 ? 0x7f800000 : 0;
    return as_float(as_bits(as_float(magnitude) * 0x1p112f) | infinite | sign);
}

namespace host {

inline float widen_bf16(uint16_t bits) { return as_float(uint32_t(bits) << 16); }
inline uint16_t narrow_bf16(float x) {
    const uint32_t bits = as_bits(x);
    return uint16_t(std::isnan(x) ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline uint16_t narrow_f16(float x) {
    const uint32_t bits = as_bits(x) & 0x7fffffff, sign = (as_bits(x) >> 16) & 0x8000;
    if (std::isnan(x)) return 0x7fff;
    if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
    if (bits < 0x38800000)  // subnormal: adding 0.5 lets the hardware round at the right place
        return uint16_t(sign | (as_bits(as_float(bits) + 0.5f) - 0x3f000000));
    return uint16_t(sign | ((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13));
}

// Whether the result is a, not b.
inline bool is_larger(float a, float b) { return std::isnan(b) || a > b; }
inline bool is_smaller(float a, float b) { return std::isnan(b) || a < b; }
inline bool is_smaller_or_nan(float a, float b) { return std::isnan(a) || a < b; }

template <float widen(uint16_t), bool takes_first(float, float)>
uint32_t choose_halves(uint32_t a, uint32_t b) {
    const bool low = takes_first(widen(uint16_t(a)), widen(uint16_t(b)));
    const bool high = takes_first(widen(uint16_t(a >> 16)), widen(uint16_t(b >> 16)));
    return ((low ? a : b) & 0xffff) | ((high ? a : b) & 0xffff0000);
}

}  // namespace host

constexpr auto larger_bf16x2 = host::choose_halves<host::widen_bf16, host::is_larger>;
constexpr auto smaller_bf16x2 = host::choose_halves<host::widen_bf16, host::is_smaller>;
constexpr auto smaller_or_nan_bf16x2 = host::choose_halves<host::widen_bf16, host::is_smaller_or_nan>;
constexpr auto larger_f16x2 = host::choose_halves<widen_f16, host::is_larger>;
constexpr auto smaller_f16x2 = host::choose_halves<widen_f16, host::is_smaller>;
constexpr auto smaller_or_nan_f16x2 = host::choose_halves<widen_f16, host::is_smaller_or_nan>;

inline uint32_t narrow_bf16x2(float low, float high) {
    return host::narrow_bf16(low) | uint32_t(host::narrow_bf16(high)) << 16;
}
inline uint32_t narrow_f16x2(float low, float high) {
    return host::narrow_f16(low) | uint32_t(host::narrow_f16(high)) << 16;
}

}  // namespace torchassay::simt
