// Scores of rows of logits on the CPU: one read of memory, two sweeps in cache.
//
// Short rows stand in lanes: `lanes` rows are transposed into a block of L1, then every operation serves all of them.
// Longer rows stand along memory, in segments of 8192 columns: the first sweep finds the two largest values, the second
// sums e^(x - u). The top class is clamped to e^0 = 1 there and taken off the sums exactly. Either way `lanes` states
// are finished at once, by the same code.
#include "kernels.h"
#include "vec.h"
// after the vector operations it is made of
#include "../row_stats.h"

namespace torchassay {
namespace {

constexpr int64_t kInLanes = 256;                     // rows of at most this many classes stand in lanes: 16 KB of L1
constexpr int64_t kFlush = 32 * Simd<float>::kLanes;  // columns summed in T, 32 in a lane, before they join a double

template <class T>
using V = typename Simd<T>::V;

template <class V>
struct Sums {
    V R{}, T{}, Q{};
};

// Adds e^d of K vectors d <= 0 to the sums that are wanted. The K are summed from zero first: a lane that holds the
// top's e^0 = 1 would round every small term alike.
template <bool kEntropy, bool kNorm, int K, class V>
TORCHASSAY_INLINE void add_exp(Sums<V>& sums, V (&d)[K]) {
    V e[K];
    for (int i = 0; i < K; ++i) d[i] = clamp_exponent(d[i]);
    exp_fast(d, e);
    Sums<V> group{e[0], e[0] * d[0], e[0] * e[0]};
    for (int i = 1; i < K; ++i) {
        group.R += e[i];
        if (kEntropy) group.T = fused(e[i], d[i], group.T);
        if (kNorm) group.Q = fused(e[i], e[i], group.Q);
    }
    sums.R += group.R;
    if (kEntropy) sums.T += group.T;
    if (kNorm) sums.Q += group.Q;
}

// ---- rows along memory

// Part of a row: a segment, or all of it.
template <class In>
struct Span {
    const In* x;
    int64_t columns;
    int64_t start;  // column of x[0] in the row
};

template <class V>
struct TwoLargest {
    V m, u;
    TORCHASSAY_INLINE void add(V x) {  // a NaN is passed over here; it reaches the sums
        u = max_or_second(min_or_second(x, m), u);
        m = max_or_second(x, m);
    }
    TORCHASSAY_INLINE void add(const TwoLargest& other) {
        u = max_or_second(min_or_second(other.m, m), max_or_second(other.u, u));
        m = max_or_second(other.m, m);
    }
};

template <class T, class In>
TORCHASSAY_INLINE TwoLargest<T> top_of(const Span<In>& span) {
    constexpr int n = Simd<T>::kLanes;
    const V<T> lowest = splat<V<T>>(-INFINITY);
    TwoLargest<V<T>> a{lowest, lowest}, b = a;
    int64_t j = 0;
    for (; j + 2 * n <= span.columns; j += 2 * n) {
        const Pair<V<T>> pair = load_pair<T>(span.x + j);
        a.add(pair.a);
        b.add(pair.b);
    }
    if (j < span.columns) {
        const Pair<V<T>> pair = load_pair_tail<T>(span.x + j, int(span.columns - j));
        a.add(pair.a);
        b.add(pair.b);
    }
    a.add(b);
    const T m = max_lane(a.m);
    const auto holders = a.m == m;
    const unsigned mask = lane_mask(holders);
    const T u = max_lane(holders ? a.u : a.m);
    return {m, mask & (mask - 1) ? m : u};  // in two lanes: a tie
}

template <class T>
TORCHASSAY_INLINE F64 widened(V<T> x) {
    if constexpr (sizeof(T) == 8)
        return x;
    else
        return widen_low(x) + widen_high(x);
}

template <class T, class In, bool kEntropy, bool kNorm>
TORCHASSAY_INLINE Segment sums_of(const Span<In>& span, const TwoLargest<T>& top) {
    constexpr int n = Simd<T>::kLanes;
    const In* const x = span.x;
    const int64_t columns = span.columns;
    // without a rest any point of reference will do: all d are -inf or NaN
    const V<T> u = splat<V<T>>(top.u == -INFINITY ? T(0) : top.u);
    const int64_t whole = columns / (2 * n) * (2 * n);
    // what comes four rows or segments further in memory arrives while this one is computed
    const auto ahead = [&](int64_t j, int64_t count) {
        for (int64_t line = 0; line < count * int64_t(sizeof(In)); line += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(x + j + 4 * columns) + line);
    };
    const V<T> zero{};
    F64 R{}, T_sum{}, Q{};
    for (int64_t j = 0; j < columns;) {
        const int64_t stop = j + kFlush < whole ? j + kFlush : whole;
        Sums<V<T>> sums;
        for (; j + 4 * n <= stop; j += 4 * n) {
            ahead(j, 4 * n);
            const Pair<V<T>> first = load_pair<T>(x + j), second = load_pair<T>(x + j + 2 * n);
            V<T> d[4] = {min_or_second(zero, first.a - u), min_or_second(zero, first.b - u),
                         min_or_second(zero, second.a - u), min_or_second(zero, second.b - u)};
            add_exp<kEntropy, kNorm>(sums, d);
        }
        for (; j < stop || (j == whole && j < columns); j += 2 * n) {
            ahead(j, 2 * n);
            const Pair<V<T>> pair = j < whole ? load_pair<T>(x + j) : load_pair_tail<T>(x + j, int(columns - j));
            V<T> d[2] = {min_or_second(zero, pair.a - u), min_or_second(zero, pair.b - u)};
            add_exp<kEntropy, kNorm>(sums, d);
        }
        R += widened<T>(sums.R);
        if (kEntropy) T_sum += widened<T>(sums.T);
        if (kNorm) Q += widened<T>(sums.Q);
    }
    Segment state{double(top.m), double(top.u), sum_lanes(R), -sum_lanes(T_sum), sum_lanes(Q), 0};
    if (top.u == -INFINITY) {
        state.R = state.T = state.Q = state.R - state.R;  // 0, or NaN if one was seen
    } else {
        state.R -= 1;  // the top class was clamped to e^0: 1 in R and Q, nothing in T, which comes off exactly
        state.Q -= 1;
    }
    return state;
}

// The lowest column that holds m; 0 where there is none, as in a row of NaN.
template <class T, class In>
TORCHASSAY_INLINE int64_t column_of(const Span<In>& span, T m) {
    constexpr int n = Simd<T>::kLanes;
    int64_t j = 0;
    while (j + n <= span.columns && !lane_mask(load<T>(span.x + j) == m)) j += n;
    while (j < span.columns && widen(span.x[j]) != m) ++j;
    return j < span.columns ? span.start + j : 0;
}

template <class T, class In>
TORCHASSAY_INLINE Segment sums_of(const ScoreJob& job, const Span<In>& span, const TwoLargest<T>& top) {
    const bool entropy = job.wants(kEntropy), norm = job.wants(kGradNorm);
    Segment state = entropy && norm ? sums_of<T, In, true, true>(span, top)
                    : entropy       ? sums_of<T, In, true, false>(span, top)
                    : norm          ? sums_of<T, In, false, true>(span, top)
                                    : sums_of<T, In, false, false>(span, top);
    if (job.wants(kPrediction)) state.k = column_of<T, In>(span, top.m);
    return state;
}

template <class T, class In>
TORCHASSAY_INLINE Span<In> span_of(const ScoreJob& job, const In* row, int64_t segment) {
    const int64_t start = segment * kSegment, rest = job.rows.classes - start;
    return {row + start, rest < kSegment ? rest : kSegment, start};
}

TORCHASSAY_INLINE void join(Segment& all, const Segment& next) {
    const RowState<double> a{all.m, all.u, all.R, all.T, all.Q}, b{next.m, next.u, next.R, next.T, next.Q};
    const RowState<double> both = merge<double>(a, b, INFINITY);
    all = {both.m, both.u, both.R, both.T, both.Q, next.m > all.m ? next.k : all.k};
}

// As torch.argmax: the first NaN of a row that has one, else k. R is NaN for two classes at +inf too.
template <class In>
int64_t first_nan(const In* row, int64_t classes, int64_t k) {
    int64_t j = 0;
    while (j < classes && widen(row[j]) == widen(row[j])) ++j;
    return j < classes ? j : k;
}

// ---- rows in lanes

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

template <class T, bool kEntropy, bool kNorm>
TORCHASSAY_INLINE RowState<V<T>> lanes_state(const T* block, int64_t classes) {
    constexpr int n = Simd<T>::kLanes;
    TwoLargest<V<T>> top{splat<V<T>>(-INFINITY), splat<V<T>>(-INFINITY)};
    for (int64_t j = 0; j < classes; ++j) top.add(load<T>(block + j * n));
    const auto lone = top.u == -INFINITY;
    const V<T> u = lone ? V<T>{} : top.u;
    Sums<V<T>> all;
    for (int64_t j = 0; j < classes;) {
        const int64_t stop = j + 16 < classes ? j + 16 : classes;  // two levels keep the error of long sums down
        Sums<V<T>> group;
        for (; j < stop; j += 4) {
            V<T> d[4];
            for (int i = 0; i < 4; ++i) d[i] = min_or_second(V<T>{}, load<T>(block + (j + i) * n) - u);
            add_exp<kEntropy, kNorm>(group, d);
        }
        all.R += group.R;
        all.T += group.T;
        all.Q += group.Q;
    }
    // the top class was clamped to e^0: 1 in R and Q, nothing in T, which comes off exactly
    const V<T> none = all.R - all.R;  // 0 or NaN
    return {top.m, top.u, lone ? none : all.R - 1, lone ? none : -all.T, lone ? none : all.Q - 1};
}

template <class T>
TORCHASSAY_INLINE RowState<V<T>> lanes_state(const ScoreJob& job, const T* block) {
    const bool entropy = job.wants(kEntropy), norm = job.wants(kGradNorm);
    if (entropy && norm) return lanes_state<T, true, true>(block, job.rows.classes);
    if (entropy) return lanes_state<T, true, false>(block, job.rows.classes);
    if (norm) return lanes_state<T, false, true>(block, job.rows.classes);
    return lanes_state<T, false, false>(block, job.rows.classes);
}

// The lowest column of the top in a block.
template <class T>
TORCHASSAY_INLINE int64_t column_of(const T* block, int64_t classes, int lane, T m) {
    constexpr int n = Simd<T>::kLanes;
    int64_t j = 0;
    while (j < classes && block[j * n + lane] != m) ++j;
    return j < classes ? j : 0;
}

// ---- finishing `lanes` rows at once

template <class T>
TORCHASSAY_INLINE void write(void* out, int64_t i, int count, V<T> v) {
    T* p = static_cast<T*>(out) + i;
    if (count == Simd<T>::kLanes)
        store<T>(p, v);
    else
        std::memcpy(p, &v, count * sizeof(T));
}

// The targets of `count` rows: their logits (NaN where out of range), and which are to be counted.
template <class T, class In>
TORCHASSAY_INLINE void look_up(ScoreJob& job, const In* const* rows, int64_t i, int count, V<T>* x_y,
                               typename Simd<T>::I* counted) {
    T value[Simd<T>::kLanes] = {};
    typename Simd<T>::Int flag[Simd<T>::kLanes] = {};
    for (int lane = 0; lane < count; ++lane) {
        const int64_t y = target_at(job.targets, i + lane);
        const bool ignored = y == job.targets.ignore_index, inside = y >= 0 && y < job.rows.classes;
        flag[lane] = ignored ? 0 : -1;
        value[lane] = inside ? widen(rows[lane][y]) : T(NAN);
        if (__builtin_expect(!inside && !ignored, 0)) {
            int64_t first = job.bad_row.load();
            while (i + lane < first && !job.bad_row.compare_exchange_weak(first, i + lane)) {
            }
        }
    }
    std::memcpy(x_y, value, sizeof(value));
    std::memcpy(counted, flag, sizeof(flag));
}

template <class T, class In>
TORCHASSAY_INLINE void finish_rows(ScoreJob& job, const In* const* rows, int64_t i, int count,
                                   const RowState<V<T>>& state) {
    const V<T> infinity = splat<V<T>>(INFINITY), zero{};
    const Finished<V<T>> f = finish(state, infinity);
    V<T> mu{}, miss{}, margin{};
    if (job.wants(kEntropy)) {
        mu = entropy_offset(f, state);
        write<T>(job.out[kEntropy], i, count, f.log_c + mu);
    }
    if (job.wants(kLse)) write<T>(job.out[kLse], i, count, f.m + f.log_c);
    if (job.wants(kConfidence)) write<T>(job.out[kConfidence], i, count, f.c);
    if (job.wants(kLeastConfidence)) write<T>(job.out[kLeastConfidence], i, count, f.r * f.c);
    if (job.wants(kMargin) || job.wants(kTargetMargin)) margin = margin_of(f, state, infinity);
    if (job.wants(kMargin)) write<T>(job.out[kMargin], i, count, margin);
    if (job.targets.data) {
        V<T> x_y;
        typename Simd<T>::I counted;
        look_up<T, In>(job, rows, i, count, &x_y, &counted);
        const Labelled<V<T>> l = label(f, x_y, infinity);
        miss = counted ? l.miss : zero;
        if (job.wants(kLoss)) write<T>(job.out[kLoss], i, count, counted ? l.loss : zero);
        if (job.wants(kGradNorm)) write<T>(job.out[kGradNorm], i, count, counted ? grad_norm_of(f, state, l) : zero);
        if (job.wants(kTargetMargin))
            write<T>(job.out[kTargetMargin], i, count, counted ? target_margin_of(f, l, margin) : zero);
    }
    if (job.wants(kStats)) {
        const V<T> stats[6] = {f.m, state.u, f.z, f.r, miss, mu};
        for (int q = 0; q < 6; ++q) write<T>(job.out[kStats], q * job.rows.count() + i, count, stats[q]);
    }
}

// ---- entry points

template <class T, class In>
void score_states(ScoreJob& job, int64_t begin, int64_t end, const Segment* states) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t segments = job.segments();
    auto* prediction = static_cast<int64_t*>(job.out[kPrediction]);
    RowCursor<In> cursor(job.rows, begin);
    for (int64_t i = begin; i < end; i += n) {
        const int count = int(end - i < n ? end - i : n);
        const In* rows[n];
        for (int lane = 0; lane < count; ++lane) rows[lane] = cursor.next();
        Segment found[n];
        if (states) {
            for (int lane = 0; lane < count; ++lane) {
                const Segment* row = states + (i + lane) * segments;
                found[lane] = row[0];
                for (int64_t s = 1; s < segments; ++s) join(found[lane], row[s]);
            }
        } else {
            // the top of the next span is found before this one is summed, so that neither waits for the other
            Span<In> span = span_of<T, In>(job, rows[0], 0);
            TwoLargest<T> top = top_of<T, In>(span);
            for (int lane = 0; lane < count; ++lane) {
                for (int64_t s = 0; s < segments; ++s) {
                    const Span<In> here = span;
                    const TwoLargest<T> its = top;
                    if (s + 1 < segments || lane + 1 < count) {
                        span = s + 1 < segments ? span_of<T, In>(job, rows[lane], s + 1)
                                                : span_of<T, In>(job, rows[lane + 1], 0);
                        top = top_of<T, In>(span);
                    }
                    const Segment state = sums_of<T, In>(job, here, its);
                    s ? join(found[lane], state) : void(found[lane] = state);
                }
            }
        }
        T lanes[5][n] = {};
        for (int lane = 0; lane < count; ++lane) {
            const Segment& all = found[lane];
            lanes[0][lane] = T(all.m), lanes[1][lane] = T(all.u);
            lanes[2][lane] = T(all.R), lanes[3][lane] = T(all.T), lanes[4][lane] = T(all.Q);
            if (prediction)
                prediction[i + lane] = all.R == all.R ? all.k : first_nan(rows[lane], job.rows.classes, all.k);
        }
        const RowState<V<T>> state{load<T>(lanes[0]), load<T>(lanes[1]), load<T>(lanes[2]), load<T>(lanes[3]),
                                   load<T>(lanes[4])};
        finish_rows<T, In>(job, rows, i, count, state);
    }
}

template <class T, class In>
void score_rows(ScoreJob& job, int64_t begin, int64_t end) {
    const int64_t classes = job.rows.classes;
    if (classes > kInLanes) return score_states<T, In>(job, begin, end, nullptr);
    constexpr int n = Simd<T>::kLanes;
    alignas(64) T block[kInLanes * n];  // kInLanes is a multiple of four
    auto* prediction = static_cast<int64_t*>(job.out[kPrediction]);
    RowCursor<In> cursor(job.rows, begin);
    for (int64_t i = begin; i < end; i += n) {
        const int count = int(end - i < n ? end - i : n);
        const In* rows[n];
        for (int lane = 0; lane < n; ++lane)
            rows[lane] = lane < count ? cursor.next() : rows[0];  // spare lanes repeat the first row
        transpose<T, In>(rows, classes, block);
        for (int lane = 0; lane < n; ++lane) {  // the next rows arrive while these are computed
            const char* next = reinterpret_cast<const char*>(rows[lane] + n * job.rows.inner_stride);
            for (int64_t line = 0; line < classes * int64_t(sizeof(In)); line += 64) __builtin_prefetch(next + line);
        }
        const RowState<V<T>> state = lanes_state<T>(job, block);
        finish_rows<T, In>(job, rows, i, count, state);
        if (prediction)
            for (int lane = 0; lane < count; ++lane) {
                const int64_t k = column_of<T>(block, classes, lane, state.m[lane]);
                prediction[i + lane] = state.R[lane] == state.R[lane] ? k : first_nan(rows[lane], classes, k);
            }
    }
}

template <class T, class In>
void score_segment(const ScoreJob& job, int64_t row, int64_t segment, Segment* out) {
    const Span<In> span = span_of<T, In>(job, RowCursor<In>(job.rows, row).next(), segment);
    *out = sums_of<T, In>(job, span, top_of<T, In>(span));
}

#define TORCHASSAY_BY_DTYPE(function, ...)                      \
    switch (job.rows.dtype) {                                   \
        case Dtype::kFloat32:                                   \
            return function<float, float>(job, __VA_ARGS__);    \
        case Dtype::kFloat64:                                   \
            return function<double, double>(job, __VA_ARGS__);  \
        case Dtype::kBfloat16:                                  \
            return function<float, Bfloat16>(job, __VA_ARGS__); \
        case Dtype::kFloat16:                                   \
            return function<float, Float16>(job, __VA_ARGS__);  \
    }
}  // namespace

namespace TORCHASSAY_ISA {
extern const int kLanes = Simd<float>::kLanes;
void score_rows_any(ScoreJob& job, int64_t begin, int64_t end) { TORCHASSAY_BY_DTYPE(score_rows, begin, end) }
void score_segment_any(const ScoreJob& job, int64_t row, int64_t segment, Segment* out) {
    TORCHASSAY_BY_DTYPE(score_segment, row, segment, out)
}
void score_states_any(ScoreJob& job, int64_t begin, int64_t end, const Segment* states) {
    TORCHASSAY_BY_DTYPE(score_states, begin, end, states)
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
