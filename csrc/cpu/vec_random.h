// csrc/philox.h on vectors: as many counters at once as there are lanes, and normal numbers from their words.
//
// A lane's numbers depend on its counter alone, so the lanes may be blocks of one row or the same block of several.
#pragma once
#include "../philox.h"
#include "vec_math.h"

namespace torchassay {
namespace {

// The products of the lower halves.
TORCHASSAY_INLINE U64 wide_product(U64 a, U64 b) {
#if defined(__AVX512F__)
    return U64(_mm512_mul_epu32(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
    return U64(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(__x86_64__)
    return U64(_mm_mul_epu32(__m128i(a), __m128i(b)));
#elif defined(__ARM_NEON)
    return U64(vmull_u32(vmovn_u64(uint64x2_t(a)), vmovn_u64(uint64x2_t(b))));
#else
    return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

// A word for each lane, in the lower halves of two vectors: of the even lanes and of the odd ones. So the product of
// two words has room, and what its upper half leaves behind does no harm.
struct Halves {
    U64 even, odd;
};

TORCHASSAY_INLINE Halves halves(uint64_t word) { return {U64{} + word, U64{} + word}; }

// first, first + 1, ... in the lanes.
TORCHASSAY_INLINE Halves count_from(uint64_t first) {
    Halves n;
    for (int i = 0; i < kBytes / 8; ++i) n.even[i] = 2 * i, n.odd[i] = 2 * i + 1;
    return {n.even + first, n.odd + first};
}

// Whose numbers, and what for: the key, and the counter's last two words.
struct RandomRows {
    uint64_t key;
    Halves low, high;

    TORCHASSAY_INLINE RandomRows(uint64_t key, uint32_t purpose, int64_t row)
        : key(key), low(halves(uint64_t(row))), high(halves(high_word(row, purpose))) {}
    TORCHASSAY_INLINE RandomRows(uint64_t key, uint32_t purpose, const int64_t* rows) : key(key) {  // one a lane
        for (int i = 0; i < kBytes / 8; ++i) {
            low.even[i] = uint64_t(rows[2 * i]), low.odd[i] = uint64_t(rows[2 * i + 1]);
            high.even[i] = high_word(rows[2 * i], purpose), high.odd[i] = high_word(rows[2 * i + 1], purpose);
        }
    }
    static TORCHASSAY_INLINE uint64_t high_word(int64_t row, uint32_t purpose) {
        return (uint64_t(row) >> 32 & 0xffffff) | uint64_t(purpose) << 24;
    }
};

struct VectorWords {
    U32 word[4];
};

// random_words of csrc/philox.h in every lane.
TORCHASSAY_INLINE VectorWords random_words(const RandomRows& rows, uint32_t draw, const Halves& n) {
    U64 c0[2] = {n.even, n.odd}, c1[2] = {U64{} + draw, U64{} + draw};
    U64 c2[2] = {rows.low.even, rows.low.odd}, c3[2] = {rows.high.even, rows.high.odd};
    uint32_t low = uint32_t(rows.key), high = uint32_t(rows.key >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int i = 0; i < 2; ++i) {
            const U64 a = wide_product(c0[i], U64{} + 0xd2511f53u), b = wide_product(c2[i], U64{} + 0xcd9e8d57u);
            c0[i] = (b >> 32) ^ c1[i] ^ (U64{} + low);
            c1[i] = b;
            c2[i] = (a >> 32) ^ c3[i] ^ (U64{} + high);
            c3[i] = a;
        }
        low += 0x9e3779b9u;
        high += 0xbb67ae85u;
    }
    const auto joined = [](const U64(&c)[2]) { return U32((c[0] & 0xffffffff) | c[1] << 32); };
    return {{joined(c0), joined(c1), joined(c2), joined(c3)}};
}

// Two normals of two words, by Box and Muller: sqrt(-2 ln(((w >> 9) + 1/2) 2^-23)) times the cosine and the sine of
// 2 pi v 2^-32. Polynomials are minimax, fitted here; the error of a normal is below 1e-6.
TORCHASSAY_INLINE void normal_pair(U32 w, U32 v, F32& cosine, F32& sine) {
    const F32 u = __builtin_convertvector(I32(w >> 9), F32) + 0.5f;
    const Split<F32> split = split_exponent(u);
    const F32 x = split.f - 1;
    constexpr float log_series[] = {0.289642721f, -0.29834789f,  0.33087492f,  -0.399168313f,
                                    0.500058889f, -0.666683197f, 0.999999583f, -2.0f};
    F32 log = splat<F32>(-0.179196075f);  // -2 ln(1 + x) / x
    for (const float c : log_series) log = fused(log, x, splat<F32>(c));
    const F32 radius = square_root(fused(split.n - 23, splat<F32>(-1.38629436f), x * log));

    // the angle as the nearest quarter of a turn and a rest of at most an eighth
    const U32 turned = v + 0x20000000u, quarter = turned >> 30;
    const F32 a = __builtin_convertvector(I32(v - (quarter << 30)), F32) * 1.46291808e-9f, a2 = a * a;
    F32 s = fused(splat<F32>(-0.000194956345f), a2, splat<F32>(0.00833197869f));
    s = fused(fused(s, a2, splat<F32>(-0.166666508f)) * a2, a, a);
    F32 c = fused(splat<F32>(2.44384501e-05f), a2, splat<F32>(-0.00138873677f));
    c = fused(fused(c, a2, splat<F32>(0.0416666456f)), a2, splat<F32>(-0.5f));
    c = fused(c, a2, splat<F32>(1));
    const auto crossed = (quarter & 1) != 0;
    const U32 cosine_sign = ((quarter + 1) & 2) << 30, sine_sign = (quarter & 2) << 30;
    cosine = radius * F32(U32(crossed ? s : c) ^ cosine_sign);
    sine = radius * F32(U32(crossed ? c : s) ^ sine_sign);
}

TORCHASSAY_INLINE F32 uniform_of(U32 word) { return __builtin_convertvector(I32(word >> 8), F32) * 0x1p-24f; }

// Neighbouring columns of a row come in runs, whole groups of 32.
constexpr int kRun = kBytes < 64 ? 32 : 64;
constexpr int kRunVectors = kRun / Simd<float>::kLanes;

// The numbers of columns [column, column + kRun) in their order; column is a multiple of kRun, the lanes one row.
template <bool kUniform>
TORCHASSAY_INLINE void random_run(const RandomRows& row, uint32_t draw, int64_t column, F32 (&run)[kRunVectors]) {
    constexpr int n = Simd<float>::kLanes, calls = kRunVectors / 4;
    for (int call = 0; call < calls; ++call) {
        const VectorWords w = random_words(row, draw, count_from(uint64_t(column / 4 + call * n)));
        F32 own[4];
        if (kUniform) {
            for (int q = 0; q < 4; ++q) own[q] = uniform_of(w.word[q]);
        } else {
            normal_pair(w.word[0], w.word[1], own[0], own[1]);
            normal_pair(w.word[2], w.word[3], own[2], own[3]);
        }
#if defined(__AVX512F__)
        for (int q = 0; q < 4; q += 2) {  // lanes 0 to 7 are of the first group, the others of the next one
            const __m512 a = __m512(own[q]), b = __m512(own[q + 1]);
            run[q / 2] = F32(_mm512_shuffle_f32x4(a, b, 0x44));
            run[2 + q / 2] = F32(_mm512_shuffle_f32x4(a, b, 0xee));
        }
#else
        for (int q = 0; q < 4; ++q) run[q * calls + call] = own[q];
#endif
    }
}

}  // namespace
}  // namespace torchassay
