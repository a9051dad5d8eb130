// Short rows: `lanes` rows are transposed into a block of L1, after which every vector holds one column of all of them.
#pragma once
#include "row_sums.h"

namespace torchassay {
namespace {

using Quad = float __attribute__((vector_size(16)));

// Four numbers of a row as float.
template <class In>
TORCHASSAY_INLINE Quad load_quad(const In* p) {
    Quad v;
    if constexpr (std::is_same_v<In, float>) {
        std::memcpy(&v, p, sizeof(v));
    } else {
#if defined(__AVX2__)
        const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
        if constexpr (std::is_same_v<In, Float16>)
            v = Quad(_mm_cvtph_ps(raw));
        else
            v = Quad(_mm_slli_epi32(_mm_cvtepu16_epi32(raw), 16));
#else
        for (int i = 0; i < 4; ++i) v[i] = widen(p[i]);
#endif
    }
    return v;
}

// Four columns of `lanes` rows, one vector a column: row 4 i + q of the lanes is brought in as quarter i of wide[q].
template <class In>
TORCHASSAY_INLINE void transpose_quads(const In* const* rows, int64_t c, float* out) {
    constexpr int n = Simd<float>::kLanes;
    F32 wide[4];
    for (int q = 0; q < 4; ++q) {
#if defined(__AVX512F__)
        __m512 v = _mm512_castps128_ps512(__m128(load_quad(rows[q] + c)));
        v = _mm512_insertf32x4(v, __m128(load_quad(rows[4 + q] + c)), 1);
        v = _mm512_insertf32x4(v, __m128(load_quad(rows[8 + q] + c)), 2);
        wide[q] = F32(_mm512_insertf32x4(v, __m128(load_quad(rows[12 + q] + c)), 3));
#elif defined(__AVX2__)
        const __m256 v = _mm256_castps128_ps256(__m128(load_quad(rows[q] + c)));
        wide[q] = F32(_mm256_insertf128_ps(v, __m128(load_quad(rows[4 + q] + c)), 1));
#else
        wide[q] = load_quad(rows[q] + c);
#endif
    }
#if defined(__AVX512F__)
#define TORCHASSAY_UNPACK(part, width, a, b) F32(_mm512_unpack##part##_##width(a, b))
    const auto cast = [](F32 x) { return __m512d(x); };
#elif defined(__AVX2__)
#define TORCHASSAY_UNPACK(part, width, a, b) F32(_mm256_unpack##part##_##width(a, b))
    const auto cast = [](F32 x) { return __m256d(x); };
#endif
#if defined(__AVX2__)
    const F32 ab = TORCHASSAY_UNPACK(lo, ps, wide[0], wide[1]), AB = TORCHASSAY_UNPACK(hi, ps, wide[0], wide[1]);
    const F32 cd = TORCHASSAY_UNPACK(lo, ps, wide[2], wide[3]), CD = TORCHASSAY_UNPACK(hi, ps, wide[2], wide[3]);
    const F32 columns[4] = {
        TORCHASSAY_UNPACK(lo, pd, cast(ab), cast(cd)), TORCHASSAY_UNPACK(hi, pd, cast(ab), cast(cd)),
        TORCHASSAY_UNPACK(lo, pd, cast(AB), cast(CD)), TORCHASSAY_UNPACK(hi, pd, cast(AB), cast(CD))};
#else
    const F32 columns[4] = {
        F32{wide[0][0], wide[1][0], wide[2][0], wide[3][0]}, F32{wide[0][1], wide[1][1], wide[2][1], wide[3][1]},
        F32{wide[0][2], wide[1][2], wide[2][2], wide[3][2]}, F32{wide[0][3], wide[1][3], wide[2][3], wide[3][3]}};
#endif
    for (int q = 0; q < 4; ++q) store<float>(out + q * n, columns[q]);
}

// Copies `lanes` rows into block[column][lane], and columns of -inf up to a multiple of four.
template <class T, class In>
TORCHASSAY_INLINE void transpose(const In* const* rows, int64_t classes, T* block) {
    constexpr int n = Simd<T>::kLanes;
    for (int64_t j = classes; j % 4; ++j) store<T>(block + j * n, splat<V<T>>(-INFINITY));
    if constexpr (sizeof(T) == 4) {
        if (classes >= 4) {
            for (int64_t c = 0; c + 4 <= classes; c += 4) transpose_quads(rows, c, block + c * n);
            if (classes % 4) transpose_quads(rows, classes - 4, block + (classes - 4) * n);  // some of them again
            return;
        }
    }
    for (int i = 0; i < n; ++i)
        for (int64_t j = 0; j < classes; ++j) block[j * n + i] = widen(rows[i][j]);
}

// The same of `lanes` rows that are neighbours in memory, their classes `stride` apart; returns their largest values.
// Those that come `next` arrive meanwhile.
template <class T, class In>
TORCHASSAY_INLINE TwoLargest<V<T>> gather(const In* x, const In* next, int64_t stride, int64_t classes, T* block) {
    constexpr int n = Simd<T>::kLanes;
    TwoLargest<V<T>> top{splat<V<T>>(-INFINITY), splat<V<T>>(-INFINITY)};
    for (int64_t j = 0; j < classes; ++j) {
        __builtin_prefetch(next + j * stride);
        const V<T> logits = load<T>(x + j * stride);
        store<T>(block + j * n, logits);
        top.add(logits);
    }
    for (int64_t j = classes; j % 4; ++j) store<T>(block + j * n, splat<V<T>>(-INFINITY));
    return top;
}

// The rows after those of x: the neighbours, or at the end of an `inner` those of the next.
template <class In>
TORCHASSAY_INLINE const In* rows_after(const Rows& rows, const In* x, int64_t row, int lanes) {
    const int64_t at = row % rows.inner;
    return at + lanes < rows.inner ? x + lanes : x - at + rows.outer_stride;
}

template <class T>
TORCHASSAY_INLINE TwoLargest<V<T>> lanes_top(const T* block, int64_t classes) {
    TwoLargest<V<T>> top{splat<V<T>>(-INFINITY), splat<V<T>>(-INFINITY)};
    for (int64_t j = 0; j < classes; ++j) top.add(load<T>(block + j * Simd<T>::kLanes));
    return top;
}

// The point of reference of the sums: without a rest any will do, as all differences are -inf or NaN.
template <class V>
TORCHASSAY_INLINE V second_in_lanes(const TwoLargest<V>& top) {
    return top.u == -INFINITY ? V{} : top.u;
}

// The sums relative to u, which is what `how` makes of the second largest logits.
template <class T, class W, class How>
TORCHASSAY_INLINE RowSums<V<T>> lanes_state(const T* block, int64_t classes, const How& how,
                                            const TwoLargest<V<T>>& top, V<T> u) {
    constexpr int n = Simd<T>::kLanes;
    const auto lone = top.u == -INFINITY;
    Sums<V<T>> all, part;
    for (int64_t j = 0; j < classes;) {
        const int64_t stop = j + 16 < classes ? j + 16 : classes;  // levels keep the error of long sums down
        Sums<V<T>> group;
        const auto add = [&](auto columns) TORCHASSAY_INLINE_LAMBDA {
            constexpr int K = decltype(columns)::value;
            V<T> x[K];
            for (int i = 0; i < K; ++i) x[i] = load<T>(block + (j + i) * n);
            add_logits<W>(group, how, u, x, classes - j);
            j += K;
        };
        if constexpr (How::kAtOnce == 8)
            while (j + 8 <= stop) add(std::integral_constant<int, 8>{});
        while (j < stop) add(std::integral_constant<int, 4>{});
        part.add(group);
        if (j % kInLanes == 0) all.add(part), part = {};
    }
    all.add(part);
    // the top class was clamped to e^0: 1 in R and Q, nothing in T and A, which comes off exactly
    const V<T> none = all.R - all.R;  // 0 or NaN
    const V<T> A = classes == 1 ? V<T>{} : -all.A;
    return {
        {top.m, top.u, lone ? none : all.R - 1, lone ? none : -all.T, lone ? none : all.Q - 1}, A, lone ? none : all.S};
}

template <class T, class Job>
TORCHASSAY_INLINE RowSums<V<T>> lanes_state(const Job& job, const T* block, const TwoLargest<V<T>>& top, int64_t i,
                                            int count) {
    return by_sums<T>(job, i, count, [&](auto wanted, const auto& how) TORCHASSAY_INLINE_LAMBDA {
        return lanes_state<T, decltype(wanted)>(block, job.rows.classes, how, top, logit_of(job, second_in_lanes(top)));
    });
}

// The lowest column of the top in a block.
template <class T>
TORCHASSAY_INLINE int64_t column_of(const T* block, int64_t classes, int lane, T m) {
    constexpr int n = Simd<T>::kLanes;
    int64_t j = 0;
    while (j < classes && block[j * n + lane] != m) ++j;
    return j < classes ? j : 0;
}

}  // namespace
}  // namespace torchassay
