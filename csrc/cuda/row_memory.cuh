// Logits in memory: 16 bytes of neighbouring columns at a time, whatever address the row starts at.
//
// A vector of columns belongs to the same lane wherever its row lies, so a row has the same bits in any view.
#pragma once
#include <stdexcept>

#include "../api.h"
#include "row_math.cuh"

namespace torchassay {

using simt::Pair;
using simt::Words;

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// A word of 32 bits holds one float32 or two halves; `larger` and `smaller` work on all that it holds, passing over
// NaN.
template <class In>
struct Packed;

template <>
struct Packed<float> {
    static constexpr uint32_t kMinusInfinity = 0xff800000u;
    static constexpr float kLowest = -3.402823466e38f;  // that is finite
    static constexpr bool kMend = true;                 // float32 logits are worth an exact exponent
    static TORCHASSAY_DEVICE uint32_t larger(uint32_t a, uint32_t b) {
        return as_bits(simt::larger(as_float(a), as_float(b)));
    }
    static TORCHASSAY_DEVICE uint32_t smaller(uint32_t a, uint32_t b) {
        return as_bits(simt::smaller(as_float(a), as_float(b)));
    }
    static TORCHASSAY_DEVICE uint32_t smaller_or_nan(uint32_t a, uint32_t b) {
        return as_bits(simt::smaller_or_nan(as_float(a), as_float(b)));
    }
    static TORCHASSAY_DEVICE uint32_t splat(float x) { return as_bits(x); }
    static TORCHASSAY_DEVICE float part(uint32_t word, int) { return as_float(word); }
    static TORCHASSAY_DEVICE uint32_t pack(float x, float) { return as_bits(x); }
};

template <>
struct Packed<Bfloat16> {
    static constexpr uint32_t kMinusInfinity = 0xff80ff80u;
    static constexpr float kLowest = -3.38953139e38f;  // that is finite
    static constexpr bool kMend = false;
    static TORCHASSAY_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return simt::larger_bf16x2(a, b); }
    static TORCHASSAY_DEVICE uint32_t smaller(uint32_t a, uint32_t b) { return simt::smaller_bf16x2(a, b); }
    static TORCHASSAY_DEVICE uint32_t smaller_or_nan(uint32_t a, uint32_t b) {
        return simt::smaller_or_nan_bf16x2(a, b);
    }
    static TORCHASSAY_DEVICE uint32_t splat(float x) { return simt::narrow_bf16x2(x, x); }
    static TORCHASSAY_DEVICE float part(uint32_t word, int i) {
        return as_float(i == 0 ? word << 16 : word & 0xffff0000u);
    }
    static TORCHASSAY_DEVICE uint32_t pack(float low, float high) { return simt::narrow_bf16x2(low, high); }
};

template <>
struct Packed<Float16> {
    static constexpr uint32_t kMinusInfinity = 0xfc00fc00u;
    static constexpr float kLowest = -65504.0f;  // that is finite
    static constexpr bool kMend = false;
    static TORCHASSAY_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return simt::larger_f16x2(a, b); }
    static TORCHASSAY_DEVICE uint32_t smaller(uint32_t a, uint32_t b) { return simt::smaller_f16x2(a, b); }
    static TORCHASSAY_DEVICE uint32_t smaller_or_nan(uint32_t a, uint32_t b) {
        return simt::smaller_or_nan_f16x2(a, b);
    }
    static TORCHASSAY_DEVICE uint32_t splat(float x) { return simt::narrow_f16x2(x, x); }
    static TORCHASSAY_DEVICE float part(uint32_t word, int i) {
        return simt::widen_f16(uint16_t(i == 0 ? word & 0xffffu : word >> 16));
    }
    static TORCHASSAY_DEVICE uint32_t pack(float low, float high) { return simt::narrow_f16x2(low, high); }
};

constexpr int kNoColumn = 0x7fffffff;

template <class In>
constexpr int kPerWord = 4 / int(sizeof(In));
template <class In>
constexpr int kVector = 16 / int(sizeof(In));  // columns of 16 bytes

// Element i of a vector; i is known when the loop around it is unrolled, so no array is ever indexed at run time.
template <class In>
TORCHASSAY_DEVICE float element(const Words& v, int i) {
    return Packed<In>::part(v.word[i / kPerWord<In>], i % kPerWord<In>);
}

template <class In>
TORCHASSAY_DEVICE Words no_columns() {
    constexpr uint32_t word = Packed<In>::kMinusInfinity;
    return {{word, word, word, word}};
}

template <class In>
TORCHASSAY_DEVICE float largest_part(uint32_t word) {
    const float first = Packed<In>::part(word, 0);
    return kPerWord<In> == 1 ? first : larger(first, Packed<In>::part(word, 1));
}

// Keeps the first `count` of a vector's columns, the others become -inf; count may be 0, negative or large. All words
// are written, whatever happens to them: a store under a condition would make the compiler index them in memory.
template <class In>
TORCHASSAY_DEVICE void keep_columns(Words& v, int count) {
    constexpr uint32_t none = Packed<In>::kMinusInfinity;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const int here = count - q * kPerWord<In>;
        const uint32_t keep = here >= kPerWord<In> ? ~0u : here == 1 ? 0xffffu : 0u;
        v.word[q] = (v.word[q] & keep) | (none & ~keep);
    }
}

// Makes column i, which is known at run time only, a -inf.
template <class In>
TORCHASSAY_DEVICE void drop_column(Words& v, int i) {
    constexpr uint32_t none = Packed<In>::kMinusInfinity;
    const uint32_t part = kPerWord<In> == 1 ? ~0u : i % 2 ? 0xffff0000u : 0xffffu;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const uint32_t drop = i / kPerWord<In> == q ? part : 0u;
        v.word[q] = (v.word[q] & ~drop) | (none & drop);
    }
}

// A vector on its way from memory: `fetch` starts the loads, `settle` waits for them. `left` columns of the row, at
// least one, begin at p; `shift` is the row's address modulo 8, and that of all its vectors.
//
// All rows start at multiples of kUnit bytes and hold whole units: 16, 8, or anything else. The last kind is read by
// aligned blocks of 8 bytes, three for a vector, and shifted into place. Nothing is read but blocks that hold a byte of
// the row.
enum Unit { kAnywhere, kUnit8 = 8, kUnit16 = 16 };

template <class In, Unit kUnit>
struct Vector;

template <class In>
struct Vector<In, kUnit16> {
    Words words;

    TORCHASSAY_DEVICE void fetch(const In* p, int, int) { words = simt::load_16_once(p); }
    TORCHASSAY_DEVICE void fetch_nothing() { words = no_columns<In>(); }
    TORCHASSAY_DEVICE Words settle(int, int) const { return words; }
};

template <class In>
struct Vector<In, kUnit8> {
    Pair pair[2];

    TORCHASSAY_DEVICE void fetch(const In* p, int, int left) {
        fetch_nothing();
        pair[0] = simt::load_8(p);
        if (left > kVector<In> / 2) pair[1] = simt::load_8(p + kVector<In> / 2);
    }
    TORCHASSAY_DEVICE void fetch_nothing() {
        constexpr uint32_t none = Packed<In>::kMinusInfinity;
        pair[0] = pair[1] = {{none, none}};
    }
    TORCHASSAY_DEVICE Words settle(int, int) const {
        return {{pair[0].word[0], pair[0].word[1], pair[1].word[0], pair[1].word[1]}};
    }
};

template <class In>
struct Vector<In, kAnywhere> {
    Pair pair[3];

    TORCHASSAY_DEVICE void fetch(const In* p, int shift, int left) {
        const char* first = reinterpret_cast<const char*>(p) - shift;
        const int bytes = shift + left * int(sizeof(In));
        fetch_nothing();
        pair[0] = simt::load_8(first);
        if (bytes > 8) pair[1] = simt::load_8(first + 8);
        if (shift != 0 && bytes > 16) pair[2] = simt::load_8(first + 16);
    }
    TORCHASSAY_DEVICE void fetch_nothing() { pair[0] = pair[1] = pair[2] = {{0, 0}}; }  // with left <= 0 for settle
    TORCHASSAY_DEVICE Words settle(int shift, int left) const {
        uint32_t w[5];
#pragma unroll
        for (int q = 0; q < 5; ++q) {
            const uint32_t here = pair[q / 2].word[q % 2], next = pair[(q + 1) / 2].word[(q + 1) % 2];
            w[q] = shift & 4 ? next : here;
        }
        Words v;
#pragma unroll
        for (int q = 0; q < 4; ++q)
            v.word[q] = kPerWord<In> == 1 ? w[q] : simt::funnel_right(w[q], w[q + 1], (shift & 2) * 8);
        if (left < kVector<In>) keep_columns<In>(v, left);
        return v;
    }
};

template <class In>
TORCHASSAY_DEVICE int shift_of(const In* row) {
    return int(reinterpret_cast<uintptr_t>(row) & 7);
}

// ---- rows

// Rows [outer, inner, classes]; row i is at (i / inner) * outer_stride + (i % inner) * inner_stride.
struct RowsOnDevice {
    const void* data;
    int64_t count, inner, outer_stride, inner_stride;
    int classes;
    bool folded;  // one stride leads through all rows: no division
};

inline RowsOnDevice on_device(const Rows& rows) {
    if (rows.classes >= 1 << 30) throw std::runtime_error("torchassay: the CUDA kernels count classes in 31 bits");
    const bool folded = rows.outer == 1 || rows.inner == 1 || rows.outer_stride == rows.inner * rows.inner_stride;
    const int64_t stride = rows.inner == 1 ? rows.outer_stride : rows.inner_stride;
    return {rows.data, rows.count(), rows.inner, rows.outer_stride, stride, int(rows.classes), folded};
}

template <class In>
TORCHASSAY_DEVICE const In* row_start(const RowsOnDevice& rows, int64_t row) {
    int64_t offset = row * rows.inner_stride;
    if (!rows.folded) {
        const int64_t a = row / rows.inner;
        offset = a * rows.outer_stride + (row - a * rows.inner) * rows.inner_stride;
    }
    return static_cast<const In*>(rows.data) + offset;
}

// ---- one number

template <class In>
TORCHASSAY_DEVICE uint32_t load_bits(const In* p) {
    if constexpr (sizeof(In) == 4)
        return simt::load(reinterpret_cast<const uint32_t*>(p));
    else
        return simt::load(reinterpret_cast<const uint16_t*>(p));
}

template <class In>
TORCHASSAY_DEVICE float load_logit(const In* p) {
    return Packed<In>::part(load_bits(p), 0);
}

template <class In>
TORCHASSAY_DEVICE void store_bits(In* p, uint32_t bits) {
    if constexpr (sizeof(In) == 4)
        *p = as_float(bits);
    else
        p->bits = uint16_t(bits);
}

}  // namespace torchassay
