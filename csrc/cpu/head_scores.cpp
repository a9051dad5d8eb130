// Scores of samples whose head is no softmax, on the CPU: one read of memory, no transcendental but exp and log1p.
//
// Samples of few outputs stand in lanes, longer ones along memory, their sums going to double every few vectors. Either
// way `lanes` samples are finished at once, by the same code.
#include "kernels.h"
#include "vec_math.h"
#include "vec_memory.h"
// after the vector operations it is made of
#include "../head_stats.h"

namespace torchassay {
namespace {

template <class T>
using V = typename Simd<T>::V;

constexpr int kGroup = 16;  // vectors that are summed in T before they join a double

// `option` is the weight of the positive target, or huber's delta.
template <Head kHead, class V>
TORCHASSAY_INLINE HeadTerms<V> terms_of(V x, V y, V option) {
    if constexpr (kHead == Head::kBinary) {
        const V a = magnitude(x);
        const V root = exp_nonpositive(a * Element<V>(-0.5));
        const V e = root * root;  // so that it underflows by and by
        const V c = 1 / (1 + e);
        return binary_terms(x, y, option, a, e, c, log1p_nonnegative(e, c));
    } else {
        return regression_terms(kHead, x, y, option);
    }
}

// One output of `count` samples, `stride` apart; the spare lanes hold anything.
template <class T, class In>
TORCHASSAY_INLINE V<T> across(const In* p, int64_t stride, int count) {
    constexpr int n = Simd<T>::kLanes;
    if (stride == 1 && count == n) return load<T>(p);
    T value[n] = {};
    for (int lane = 0; lane < count; ++lane) value[lane] = widen(p[lane * stride]);
    return load<T>(value);
}

// Neighbouring outputs of one sample, `spare` past the last.
template <class T, class In>
TORCHASSAY_INLINE V<T> along(const In* p, int64_t left, T spare) {
    constexpr int n = Simd<T>::kLanes;
    if (left >= n) return load<T>(p);
    T value[n];
    for (int lane = 0; lane < n; ++lane) value[lane] = lane < left ? widen(p[lane]) : spare;
    return load<T>(value);
}

template <class T, class In, Head kHead>
TORCHASSAY_INLINE HeadSums<V<T>> sums_in_lanes(const HeadTask& job, const In* x, const T* y, int count) {
    const T* weight = static_cast<const T*>(job.pos_weight);
    HeadSums<V<T>> sums;
    for (int64_t j = 0; j < job.rows.classes; ++j) {
        const V<T> option = splat<V<T>>(kHead != Head::kBinary ? T(job.delta) : weight ? weight[j] : T(1));
        add<T>(sums, terms_of<kHead>(across<T>(x + j, job.rows.inner_stride, count),
                                     across<T>(y + j, job.target_stride, count), option));
    }
    return sums;
}

template <class T, class In, Head kHead>
TORCHASSAY_INLINE HeadSums<double> sums_along_memory(const HeadTask& job, const In* x, const T* y) {
    constexpr int n = Simd<T>::kLanes;
    constexpr T spare = kHead == Head::kBinary ? T(-1e4) : T(0);  // with target 0 it adds exactly 0 to every sum
    const T* weight = static_cast<const T*>(job.pos_weight);
    const int64_t outputs = job.rows.classes;
    HeadSums<F64> all;
    for (int64_t j = 0; j < outputs;) {
        HeadSums<V<T>> group;
        for (const int64_t stop = j + kGroup * n; j < stop && j < outputs; j += n) {
            const int64_t left = outputs - j;
            V<T> option = splat<V<T>>(kHead == Head::kBinary ? T(1) : T(job.delta));
            if (kHead == Head::kBinary && weight) option = along<T>(weight + j, left, T(0));
            add<T>(group, terms_of<kHead>(along<T>(x + j, left, spare), along<T>(y + j, left, T(0)), option));
        }
        all.loss += widened<T>(group.loss);
        all.entropy += widened<T>(group.entropy);
        all.low += widened<T>(group.low);
        all.middle += widened<T>(group.middle);
        all.high += widened<T>(group.high);
    }
    HeadSums<double> sums;
    sums.loss = sum_lanes(all.loss), sums.entropy = sum_lanes(all.entropy);
    sums.low = sum_lanes(all.low), sums.middle = sum_lanes(all.middle), sums.high = sum_lanes(all.high);
    return sums;
}

template <class T>
TORCHASSAY_INLINE void write(void* out, int64_t i, int count, V<T> v) {
    if (!out) return;
    T* p = static_cast<T*>(out) + i;
    count == Simd<T>::kLanes ? store<T>(p, v) : store_tail<T>(p, v, count);
}

template <class T, class In, Head kHead>
void score_samples(const HeadTask& job, int64_t begin, int64_t end) {
    constexpr int n = Simd<T>::kLanes;
    for (int64_t i = begin; i < end; i += n) {
        const int count = int(end - i < n ? end - i : n);
        const In* x = static_cast<const In*>(job.rows.data) + i * job.rows.inner_stride;
        const T* y = static_cast<const T*>(job.target) + i * job.target_stride;
        HeadSums<V<T>> sums;
        if (job.rows.classes <= n) {
            sums = sums_in_lanes<T, In, kHead>(job, x, y, count);
        } else {
            T lanes[5][n] = {};
            for (int lane = 0; lane < count; ++lane) {
                const HeadSums<double> own = sums_along_memory<T, In, kHead>(job, x + lane * job.rows.inner_stride,
                                                                             y + lane * job.target_stride);
                lanes[0][lane] = T(own.loss), lanes[1][lane] = T(own.entropy);
                lanes[2][lane] = T(own.low), lanes[3][lane] = T(own.middle), lanes[4][lane] = T(own.high);
            }
            sums = {load<T>(lanes[0]), load<T>(lanes[1]), load<T>(lanes[2]), load<T>(lanes[3]), load<T>(lanes[4])};
        }
        write<T>(job.out[kLoss], i, count, sums.loss);
        write<T>(job.out[kEntropy], i, count, sums.entropy);
        write<T>(job.out[kGradNorm], i, count, grad_norm_of<T>(sums));
    }
}

template <class T, class In>
void score_heads(const HeadTask& job, int64_t begin, int64_t end) {
    switch (job.head) {
        case Head::kBinary:
            return score_samples<T, In, Head::kBinary>(job, begin, end);
        case Head::kMse:
            return score_samples<T, In, Head::kMse>(job, begin, end);
        case Head::kL1:
            return score_samples<T, In, Head::kL1>(job, begin, end);
        case Head::kHuber:
            return score_samples<T, In, Head::kHuber>(job, begin, end);
    }
}

}  // namespace

namespace TORCHASSAY_ISA {
void score_heads_any(const HeadTask& job, int64_t begin, int64_t end) { TORCHASSAY_BY_DTYPE(score_heads, begin, end) }
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
