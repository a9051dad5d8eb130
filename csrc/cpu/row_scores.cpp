// Scores of rows of logits on the CPU: one read of memory, two sweeps in cache.
//
// Short rows stand in lanes: `lanes` rows are transposed into a block of L1, then every operation serves all of them.
// Longer rows stand along memory, in segments of 8192 columns: the first sweep finds the two largest values, the second
// sums e^(x - u) with the top class clamped to e^0 = 1, which is then taken off the sums exactly. Either way `lanes`
// states are finished at once, by the same code.
#include "kernels.h"
#include "vec.h"
// after the vector operations it is made of
#include "../row_stats.h"

namespace torchassay {
namespace {

constexpr int64_t kInLanes = 256;                     // rows of at most this many classes stand in lanes: 16 KB of L1
constexpr int64_t kFlush = 64 * Simd<float>::kLanes;  // columns summed in T, 32 in a lane, before they join a double

template <class T>
using V = typename Simd<T>::V;

template <class V>
struct TwoLargest {
    V m, u;
    TORCHASSAY_INLINE void add(V x) {  // a NaN is passed over here; it reaches the sums
        u = max_or_second(min_or_second(x, m), u);
        m = max_or_second(x, m);
    }
};

template <class T>
TORCHASSAY_INLINE TwoLargest<T> across_lanes(TwoLargest<V<T>> lanes) {
    constexpr int n = Simd<T>::kLanes;
    const T m = max_lane(lanes.m);
    const auto at_top = lanes.m == m;
    int tops = 0;
    for (int i = 0; i < n; ++i) tops -= int(at_top[i]);
    return {m, tops > 1 ? m : max_lane(at_top ? lanes.u : lanes.m)};
}

template <class T>
TORCHASSAY_INLINE double total(V<T> x) {
    if constexpr (sizeof(T) == 8)
        return sum_lanes(x);
    else
        return sum_lanes(widen_low(x) + widen_high(x));
}

// R, T and Q in lanes; the top class counts as e^0 = 1.
template <class V, bool kEntropy, bool kNorm>
struct Sums {
    V R{}, T{}, Q{};
    TORCHASSAY_INLINE void add(V x, V u) {
        const V d = clamp_exponent(min_or_second(V{}, x - u));
        const V e = exp_fast(d);
        R += e;
        if (kEntropy) T = fused(e, d, T);
        if (kNorm) Q = fused(e, e, Q);
    }
    TORCHASSAY_INLINE void add(const Sums& other) {
        R += other.R;
        if (kEntropy) T += other.T;
        if (kNorm) Q += other.Q;
    }
};

// ---- rows along memory

template <class T, class In, bool kEntropy, bool kNorm>
TORCHASSAY_INLINE RowState<double> segment_state(const In* x, int64_t columns) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t whole = columns / n * n;
    const int tail = int(columns - whole);

    const V<T> lowest = splat<V<T>>(-INFINITY);
    TwoLargest<V<T>> even{lowest, lowest}, odd{lowest, lowest};
    int64_t j = 0;
    for (; j + 2 * n <= whole; j += 2 * n) {
        even.add(load<T>(x + j));
        odd.add(load<T>(x + j + n));
    }
    if (j < whole) even.add(load<T>(x + j));
    if (tail) odd.add(load_tail<T>(x + whole, tail));
    even.u = max_or_second(min_or_second(even.m, odd.m), max_or_second(even.u, odd.u));
    even.m = max_or_second(even.m, odd.m);
    const TwoLargest<T> top = across_lanes<T>(even);

    const bool lone = top.u == -INFINITY;
    const V<T> u = splat<V<T>>(lone ? T(0) : top.u);
    RowState<double> state{double(top.m), double(top.u), 0, 0, 0};
    for (j = 0; j < columns;) {
        const int64_t stop = j + kFlush < whole ? j + kFlush : whole;
        Sums<V<T>, kEntropy, kNorm> sums, more;
        for (; j + 2 * n <= stop; j += 2 * n) {
            __builtin_prefetch(x + j + kSegment, 0, 2);
            sums.add(load<T>(x + j), u);
            more.add(load<T>(x + j + n), u);
        }
        for (; j < stop; j += n) sums.add(load<T>(x + j), u);
        if (j == whole && tail) {
            more.add(load_tail<T>(x + whole, tail), u);
            j = columns;
        }
        sums.add(more);
        state.R += total<T>(sums.R);
        if (kEntropy) state.T -= total<T>(sums.T);
        if (kNorm) state.Q += total<T>(sums.Q);
    }
    if (lone) {
        state.R = state.T = state.Q = state.R - state.R;  // 0, or NaN if one was seen
    } else {
        state.R -= 1;
        if (kNorm) state.Q -= 1;
    }
    return state;
}

template <class T, class In>
TORCHASSAY_INLINE RowState<double> segment_state(const ScoreJob& job, const In* x, int64_t columns) {
    const bool entropy = job.wants(kEntropy), norm = job.wants(kGradNorm);
    if (entropy && norm) return segment_state<T, In, true, true>(x, columns);
    if (entropy) return segment_state<T, In, true, false>(x, columns);
    if (norm) return segment_state<T, In, false, true>(x, columns);
    return segment_state<T, In, false, false>(x, columns);
}

TORCHASSAY_INLINE void join(Segment& all, const Segment& next) {
    const RowState<double> a{all.m, all.u, all.R, all.T, all.Q}, b{next.m, next.u, next.R, next.T, next.Q};
    const RowState<double> both = merge<double>(a, b, INFINITY);
    all = {both.m, both.u, both.R, both.T, both.Q, next.m > all.m ? next.start : all.start};
}

template <class T, class In>
TORCHASSAY_INLINE Segment segment_of(const ScoreJob& job, const In* row, int64_t segment) {
    const int64_t start = segment * kSegment, rest = job.rows.classes - start;
    const RowState<double> s = segment_state<T, In>(job, row + start, rest < kSegment ? rest : kSegment);
    return {s.m, s.u, s.R, s.T, s.Q, start};
}

// The lowest column at or after `start` that is the top; the first NaN of a row that has one, as torch.argmax.
template <class T, class In>
int64_t prediction_of(const In* row, int64_t classes, int64_t start, T m, bool poisoned) {
    if (poisoned)
        for (int64_t j = 0; j < classes; ++j)
            if (widen(row[j]) != widen(row[j])) return j;
    constexpr int n = Simd<T>::kLanes;
    int64_t j = start;
    while (j + n <= classes && !any(load<T>(row + j) == m)) j += n;
    while (j < classes && !(widen(row[j]) == m)) ++j;
    return j < classes ? j : 0;
}

// ---- rows in lanes

using Quad = float __attribute__((vector_size(16)));
using QuadMask = int32_t __attribute__((vector_size(16)));

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

#if defined(__clang__)
#define TORCHASSAY_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TORCHASSAY_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, QuadMask{__VA_ARGS__})
#endif

// Copies `lanes` rows into block[column][lane], four by four where the type allows.
template <class T, class In>
TORCHASSAY_INLINE void transpose(const In* const* rows, int64_t classes, T* block) {
    constexpr int n = Simd<T>::kLanes;
    if constexpr (sizeof(T) == 4) {
        for (int64_t j = 0; classes >= 4 && j < classes; j += 4) {
            const int64_t c = j + 4 <= classes ? j : classes - 4;  // the last four again, where four do not divide
            for (int i = 0; i < n; i += 4) {
                const auto a = load_quad(rows[i] + c), b = load_quad(rows[i + 1] + c);
                const auto d = load_quad(rows[i + 2] + c), e = load_quad(rows[i + 3] + c);
                const auto ab = TORCHASSAY_SHUFFLE(a, b, 0, 4, 1, 5), AB = TORCHASSAY_SHUFFLE(a, b, 2, 6, 3, 7);
                const auto de = TORCHASSAY_SHUFFLE(d, e, 0, 4, 1, 5), DE = TORCHASSAY_SHUFFLE(d, e, 2, 6, 3, 7);
                const Quad columns[4] = {TORCHASSAY_SHUFFLE(ab, de, 0, 1, 4, 5), TORCHASSAY_SHUFFLE(ab, de, 2, 3, 6, 7),
                                         TORCHASSAY_SHUFFLE(AB, DE, 0, 1, 4, 5),
                                         TORCHASSAY_SHUFFLE(AB, DE, 2, 3, 6, 7)};
                for (int q = 0; q < 4; ++q) std::memcpy(block + (c + q) * n + i, &columns[q], 16);
            }
        }
        if (classes >= 4) return;
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
    Sums<V<T>, kEntropy, kNorm> all;
    for (int64_t j = 0; j < classes;) {
        const int64_t stop = j + 16 < classes ? j + 16 : classes;  // two levels keep the error of long sums down
        Sums<V<T>, kEntropy, kNorm> group;
        for (; j < stop; ++j) group.add(load<T>(block + j * n), u);
        all.add(group);
    }
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
    for (int lane = 0; lane < count; ++lane) {
        const int64_t y = target_at(job.targets, i + lane);
        const bool ignored = y == job.targets.ignore_index, inside = y >= 0 && y < job.rows.classes;
        (*counted)[lane] = ignored ? 0 : -1;
        (*x_y)[lane] = inside ? widen(rows[lane][y]) : T(NAN);
        if (!inside && !ignored) {
            int64_t first = job.bad_row.load();
            while (i + lane < first && !job.bad_row.compare_exchange_weak(first, i + lane)) {
            }
        }
    }
}

template <class T, class In>
TORCHASSAY_INLINE void finish_rows(ScoreJob& job, const In* const* rows, int64_t i, int count,
                                   const RowState<V<T>>& state, const int64_t* start) {
    const V<T> infinity = splat<V<T>>(INFINITY);
    const Finished<V<T>> f = finish(state, infinity);
    V<T> mu{};
    if (job.wants(kEntropy)) {
        mu = entropy_offset(f);
        write<T>(job.out[kEntropy], i, count, f.log_c + mu);
    }
    if (job.wants(kLse)) write<T>(job.out[kLse], i, count, f.m + f.log_c);
    if (job.wants(kConfidence)) write<T>(job.out[kConfidence], i, count, f.c);
    if (job.wants(kLeastConfidence)) write<T>(job.out[kLeastConfidence], i, count, f.r * f.c);
    if (job.wants(kMargin)) write<T>(job.out[kMargin], i, count, f.margin);
    V<T> miss{};
    if (job.targets.data) {
        V<T> x_y{};
        typename Simd<T>::I counted{};
        look_up<T, In>(job, rows, i, count, &x_y, &counted);
        const Labelled<V<T>> l = label(f, x_y, infinity);
        miss = counted ? l.miss : V<T>{};
        if (job.wants(kLoss)) write<T>(job.out[kLoss], i, count, counted ? l.loss : V<T>{});
        if (job.wants(kGradNorm)) write<T>(job.out[kGradNorm], i, count, counted ? l.grad_norm : V<T>{});
        if (job.wants(kTargetMargin)) write<T>(job.out[kTargetMargin], i, count, counted ? l.target_margin : V<T>{});
    }
    if (job.wants(kStats)) {
        const V<T> stats[6] = {f.m, f.u, f.z, f.r, miss, mu};
        for (int q = 0; q < 6; ++q) write<T>(job.out[kStats], q * job.rows.count() + i, count, stats[q]);
    }
    if (job.wants(kPrediction))
        for (int lane = 0; lane < count; ++lane)
            static_cast<int64_t*>(job.out[kPrediction])[i + lane] = prediction_of<T, In>(
                rows[lane], job.rows.classes, start ? start[lane] : 0, f.m[lane], state.R[lane] != state.R[lane]);
}

// ---- entry points

template <class T, class In>
void score_states(ScoreJob& job, int64_t begin, int64_t end, const Segment* states) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t segments = job.segments();
    for (int64_t i = begin; i < end; i += n) {
        const int count = int(end - i < n ? end - i : n);
        const In* rows[n];
        int64_t start[n] = {};
        RowState<V<T>> state{};
        for (int lane = 0; lane < count; ++lane) {
            rows[lane] = row_at<In>(job.rows, i + lane);
            const Segment* given = states ? states + (i + lane) * segments : nullptr;
            Segment all = given ? given[0] : segment_of<T, In>(job, rows[lane], 0);
            for (int64_t s = 1; s < segments; ++s) join(all, given ? given[s] : segment_of<T, In>(job, rows[lane], s));
            start[lane] = all.start;
            state.m[lane] = T(all.m), state.u[lane] = T(all.u);
            state.R[lane] = T(all.R), state.T[lane] = T(all.T), state.Q[lane] = T(all.Q);
        }
        finish_rows<T, In>(job, rows, i, count, state, start);
    }
}

template <class T, class In>
void score_rows(ScoreJob& job, int64_t begin, int64_t end) {
    if (job.rows.classes > kInLanes) return score_states<T, In>(job, begin, end, nullptr);
    constexpr int n = Simd<T>::kLanes;
    alignas(64) T block[kInLanes * n];
    for (int64_t i = begin; i < end; i += n) {
        const int count = int(end - i < n ? end - i : n);
        const In* rows[n];
        for (int lane = 0; lane < n; ++lane)
            rows[lane] = lane < count ? row_at<In>(job.rows, i + lane) : rows[0];  // spare lanes repeat the first row
        transpose<T, In>(rows, job.rows.classes, block);
        finish_rows<T, In>(job, rows, i, count, lanes_state<T>(job, block), nullptr);
    }
}

template <class T, class In>
void score_segment(const ScoreJob& job, int64_t row, int64_t segment, Segment* out) {
    *out = segment_of<T, In>(job, row_at<In>(job.rows, row), segment);
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
