// Loads and stores of vectors from and to any storage type: bf16 and fp16 are read directly, -inf fills the lanes past
// the end of a row.
#pragma once
#include "vec.h"

namespace torchassay {
namespace {

template <class T, class In>
TORCHASSAY_INLINE typename Simd<T>::V load(const In* p) {
    typename Simd<T>::V v;
    if constexpr (sizeof(In) == sizeof(T)) {
        std::memcpy(&v, p, sizeof(v));
    } else {
#if defined(__AVX512F__)
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        if constexpr (std::is_same_v<In, Float16>)
            v = F32(_mm512_cvtph_ps(raw));
        else
            v = F32(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
#elif defined(__AVX2__)
        const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        if constexpr (std::is_same_v<In, Float16>)
            v = F32(_mm256_cvtph_ps(raw));
        else
            v = F32(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
#else
        for (int i = 0; i < Simd<float>::kLanes; ++i) v[i] = widen(p[i]);
#endif
    }
    return v;
}

// Conditions of the lanes, -1 where one holds.
template <class T>
TORCHASSAY_INLINE typename Simd<T>::I load_mask(const typename Simd<T>::Int* p) {
    typename Simd<T>::I v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}

template <class In>
TORCHASSAY_INLINE In minus_infinity() {
    if constexpr (std::is_same_v<In, Bfloat16>) {
        return Bfloat16{0xff80};
    } else if constexpr (std::is_same_v<In, Float16>) {
        return Float16{0xfc00};
    } else {
        return In(-INFINITY);
    }
}

// The first n < kLanes numbers at p, the other lanes -inf, which adds nothing to any sum.
template <class T, class In>
TORCHASSAY_INLINE typename Simd<T>::V load_tail(const In* p, int n) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<In, float>)
        return F32(_mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), __mmask16((1u << n) - 1), p));
#endif
    In padded[Simd<T>::kLanes];
    for (In& x : padded) x = minus_infinity<In>();
    std::memcpy(padded, p, n * sizeof(In));
    return load<T>(padded);
}

// Two vectors of neighbouring columns, in whatever order is cheapest; a column's place depends on the column alone.
template <class V>
struct Pair {
    V a, b;
};

template <class In>
constexpr bool kInterleaved = std::is_same_v<In, Bfloat16>;  // even columns in a, odd ones in b

TORCHASSAY_INLINE Pair<F32> split(I32 raw) {  // bfloat16 is the upper half of float32
    return {F32(raw << 16), F32(raw & int32_t(0xffff0000))};
}

template <class T, class In>
TORCHASSAY_INLINE Pair<typename Simd<T>::V> load_pair(const In* p) {
    if constexpr (kInterleaved<In>) {
        I32 raw;
        std::memcpy(&raw, p, sizeof(raw));
        return split(raw);
    } else {
        return {load<T>(p), load<T>(p + Simd<T>::kLanes)};
    }
}

// The first n < 2 kLanes numbers at p, -inf after them.
template <class T, class In>
TORCHASSAY_INLINE Pair<typename Simd<T>::V> load_pair_tail(const In* p, int n) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<In, float>) {
        const __m512 filled = _mm512_set1_ps(-INFINITY);
        const uint32_t mask = (uint32_t(1) << n) - 1;
        return {F32(_mm512_mask_loadu_ps(filled, __mmask16(mask), p)),
                F32(_mm512_mask_loadu_ps(filled, __mmask16(mask >> 16), p + 16))};
    } else if constexpr (kInterleaved<In>) {
        const __m512i filled = _mm512_set1_epi16(short(minus_infinity<In>().bits));
        return split(I32(_mm512_mask_loadu_epi16(filled, (uint32_t(1) << n) - 1, p)));
    }
#endif
    In padded[2 * Simd<T>::kLanes];
    for (In& x : padded) x = minus_infinity<In>();
    std::memcpy(padded, p, n * sizeof(In));
    return load_pair<T>(padded);
}

template <class T, class Out>
TORCHASSAY_INLINE void store(Out* p, typename Simd<T>::V v) {
    if constexpr (sizeof(Out) == sizeof(T)) {
        std::memcpy(p, &v, sizeof(v));
    } else {
#if defined(__AVX512F__)
        __m256i raw;
        if constexpr (std::is_same_v<Out, Float16>) {
            raw = _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        } else {
            const I32 bits = I32(v);
            const I32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
            raw = _mm512_cvtepi32_epi16(__m512i(v != v ? splat<I32>(0x7fc0) : rounded));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), raw);
#else
        for (int i = 0; i < Simd<float>::kLanes; ++i) narrow(v[i], p + i);
#endif
    }
}

template <class T, class Out>
TORCHASSAY_INLINE void store_tail(Out* p, typename Simd<T>::V v, int n) {
    Out whole[Simd<T>::kLanes];
    store<T>(whole, v);
    std::memcpy(p, whole, n * sizeof(Out));
}

}  // namespace
}  // namespace torchassay
