// Longer rows: a warp or a block walks a row in spans of kLanes times 64 bytes; every lane sums up columns of its own.
//
// The lanes' states are online sums, their own maximum included, with neither branch nor barrier in the loop; loads are
// one span ahead. The tops are settled at the end: the columns of one lane that holds the largest logit are read again
// (a part in kLanes of the row), so that the top class shares no sum with the rest. Every span starts from an empty
// state, so a few rows can be cut into spans for blocks of their own and give the same bits.
#pragma once
#include "reduce.cuh"
#include "row_output.cuh"

namespace torchassay {

constexpr int kSpanVectors = 4;  // of a lane in a span: 64 bytes in flight
constexpr float kLowest = -3.402823466e38f;

// M is the largest of a lane's logits, at least kLowest, so that x - M is no NaN for x = -inf; R, T, Q as in
// row_stats.h, but relative to M and with all columns. R < 1/2: only -inf seen so far.
struct LaneState {
    float M, R, T, Q;
    TORCHASSAY_DEVICE bool empty() const { return R < 0.5f; }
};

// The sums of a lane's columns in one span, from zero.
template <class In, class S>
TORCHASSAY_DEVICE LaneState sum_span(const Words (&x)[kSpanVectors], const S& scale) {
    using P = Packed<In>;
    uint32_t top = x[0].word[0];
#pragma unroll
    for (int i = 1; i < kSpanVectors * 4; ++i) top = P::larger(top, x[i / 4].word[i % 4]);
    const float M = larger(largest_part<In>(top), kLowest);
    Sums s{0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int v = 0; v < kSpanVectors; ++v) add_columns<In, P::kMend>(s, x[v], M, scale);
    return {M, s.R, s.T, s.Q};
}

// Adds `low` to `high`, whose M is at least as large.
template <class S>
TORCHASSAY_DEVICE void add_lower(LaneState& high, const LaneState& low, const S& scale) {
    float d = low.M - high.M;
    const float c = exp_of<true>(d, scale);
    high.R = fused(c, low.R, high.R);
    high.T = fused(c, fused(-d, low.R, low.T), high.T);
    high.Q = fused(c * c, low.Q, high.Q);
}

// Merges the next span into a lane's state; `at` is the span that its maximum was first met in.
template <class S>
TORCHASSAY_DEVICE void append(LaneState& all, int& at, const LaneState& next, int span, const S& scale) {
    const bool higher = next.M > all.M;
    if (higher || (all.empty() && !next.empty())) at = span;
    LaneState high{select(higher, next.M, all.M), select(higher, next.R, all.R), select(higher, next.T, all.T),
                   select(higher, next.Q, all.Q)};
    const LaneState low{select(higher, all.M, next.M), select(higher, all.R, next.R), select(higher, all.T, next.T),
                        select(higher, all.Q, next.Q)};
    add_lower(high, low, scale);
    all = high;
}

// The columns of a lane: vector v of span s starts at column ((s * kSpanVectors + v) * kLanes + lane) * kVector.
template <class In, Unit kUnit, int kLanes>
struct Walk {
    using Span = Vector<In, kUnit>[kSpanVectors];
    static constexpr int kSpan = kLanes * kSpanVectors * kVector<In>;

    const In* row;
    int classes;
    int shift;
    TORCHASSAY_DEVICE Walk(const In* start, int columns) : row(start), classes(columns), shift(shift_of(start)) {}

    TORCHASSAY_DEVICE int spans() const { return (classes + kSpan - 1) / kSpan; }
    TORCHASSAY_DEVICE static int column(int vector, int lane) { return (vector * kLanes + lane) * kVector<In>; }
    TORCHASSAY_DEVICE int left(int span, int v, int lane) const { return classes - span * kSpan - column(v, lane); }

    // In a whole span there is no bound to check.
    TORCHASSAY_DEVICE void fetch(Span& x, int span, int lane) const {
        const In* p = simt::computed(row + lane * kVector<In> + int64_t(span) * kSpan);
        if ((span + 1) * kSpan <= classes) {
#pragma unroll
            for (int v = 0; v < kSpanVectors; ++v) x[v].fetch(p + column(v, 0), shift, kVector<In>);
            return;
        }
#pragma unroll
        for (int v = 0; v < kSpanVectors; ++v) {
            if (left(span, v, lane) > 0)
                x[v].fetch(p + column(v, 0), shift, left(span, v, lane));
            else
                x[v].fetch_nothing();
        }
    }
    template <class S>
    TORCHASSAY_DEVICE LaneState sum(const Span& x, int span, int lane, const S& scale) const {
        const bool whole = (span + 1) * kSpan <= classes;
        Words settled[kSpanVectors];
#pragma unroll
        for (int v = 0; v < kSpanVectors; ++v)
            settled[v] = x[v].settle(shift, whole ? kVector<In> : left(span, v, lane));
        return sum_span<In>(settled, scale);
    }
    // A vector once more, and perhaps soon again.
    TORCHASSAY_DEVICE Words read(int vector, int lane) const {
        const int first = column(vector, lane);
        if (first >= classes) return no_columns<In>();
        if constexpr (kUnit == kUnit16) return simt::load_16(row + first);
        Vector<In, kUnit> x;
        x.fetch(row + first, shift, classes - first);
        return x.settle(shift, classes - first);
    }
};

// Which lane holds the largest logit: the largest key wins, of equals the lane that met it in the earliest span.
TORCHASSAY_DEVICE uint64_t key_of(const LaneState& s, int at, int lane, int lanes) {
    const uint32_t bits = as_bits(s.M + 0.0f);  // zeros of both signs are equal
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return s.empty() ? 0 : uint64_t(ordered) << 32 | (0xffffffffu - uint32_t(at * lanes + lane));
}
TORCHASSAY_DEVICE float maximum_of(uint64_t key) {
    const uint32_t ordered = uint32_t(key >> 32), bits = ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered;
    return key == 0 ? -TORCHASSAY_INFINITY : as_float(bits);
}

// The lowest column of `logit` among a lane's columns of one span.
template <class In, Unit kUnit, int kLanes>
TORCHASSAY_DEVICE int column_of(const Walk<In, kUnit, kLanes>& walk, float logit, int span, int lane) {
    int k = kNoColumn;
#pragma unroll
    for (int v = kSpanVectors - 1; v >= 0; --v) {
        const int vector = span * kSpanVectors + v;
        const Words x = walk.read(vector, lane);
#pragma unroll
        for (int i = kVector<In> - 1; i >= 0; --i)
            if (element<In>(x, i) == logit) k = walk.column(vector, lane) + i;
    }
    return k;
}

// The lowest column that holds a NaN, over all lanes.
template <class In, Unit kUnit, int kLanes>
TORCHASSAY_DEVICE int first_nan(const Walk<In, kUnit, kLanes>& walk, int lane) {
    int k = kNoColumn;
    for (int vector = walk.spans() * kSpanVectors - 1; vector >= 0; --vector) {
        const Words x = walk.read(vector, lane);
#pragma unroll
        for (int i = kVector<In> - 1; i >= 0; --i)
            if (element<In>(x, i) != element<In>(x, i)) k = walk.column(vector, lane) + i;
    }
    return reduce<kLanes>(k, Smaller{});
}

// From the lanes' states to the row's signals.
template <class In, Unit kUnit, int kLanes, class Task, class S>
TORCHASSAY_DEVICE void settle_row(const Task& task, int64_t row, const Walk<In, kUnit, kLanes>& walk, int lane,
                                  const LaneState& own, int at, const Target& target, const S& scale) {
    const uint64_t key = reduce<kLanes>(key_of(own, at, lane, kLanes), Larger{});
    const uint32_t place = 0xffffffffu - uint32_t(key);
    const int owner = key == 0 ? 0 : int(place % kLanes), owner_at = key == 0 ? 0 : int(place / kLanes);
    const float m = maximum_of(key);
    const bool shares = lane != owner && !own.empty();

    // The owner's vectors, one or a few for every lane; the four of a span lie in neighbouring lanes, which together
    // find the lowest column of m among them and leave it out.
    const int vectors = walk.spans() * kSpanVectors;
    const auto without_top = [&](int vector) {
        Words x = vector < vectors ? walk.read(vector, owner) : no_columns<In>();
        const int first = walk.column(vector, owner);
        int k = kNoColumn;
        if (vector / kSpanVectors == owner_at) {
#pragma unroll
            for (int i = kVector<In> - 1; i >= 0; --i)
                if (element<In>(x, i) == m) k = first + i;
        }
        const int lowest = reduce_in_warp(k, kSpanVectors, Smaller{});
        if (k != kNoColumn && k == lowest) drop_column<In>(x, k - first);
        return x;
    };
    float u = shares ? own.M : kLowest;
    for (int base = 0; base < vectors; base += kLanes) {
        const Words x = without_top(base + lane);
#pragma unroll
        for (int q = 0; q < 4; ++q) u = larger(u, largest_part<In>(x.word[q]));
    }
    u = reduce<kLanes>(u, Larger{});
    LaneState s{u, 0.0f, 0.0f, 0.0f};
    for (int base = 0; base < vectors; base += kLanes) {
        Sums part{0.0f, 0.0f, 0.0f};
        add_columns<In, true>(part, without_top(base + lane), u, scale);
        s.R += part.R;
        s.T += part.T;
        s.Q += part.Q;
    }
    if (shares) add_lower(s, own, scale);
    const Sums sums = sum<kLanes>({s.R, s.T, s.Q});

    int prediction = 0;
    if (task.out[kPrediction]) {
        int k = kNoColumn;
        if (own.M == m && at == owner_at && !own.empty()) k = column_of(walk, m, at, lane);
        k = reduce<kLanes>(k, Smaller{});
        if (sums.R != sums.R) {
            const int unordered = first_nan(walk, lane);
            k = unordered == kNoColumn ? k : unordered;
        }
        prediction = k == kNoColumn ? 0 : k;
    }
    if (lane != 0) return;
    if (sums.R < 0.5f)
        write_row(task, row, {m, -TORCHASSAY_INFINITY, 0.0f, 0.0f, 0.0f}, target, prediction);
    else
        write_row(task, row, {m, u, sums.R, sums.T, sums.Q}, target, prediction);
}

template <class In, Unit kUnit, int kLanes, class Task>
__global__ void __launch_bounds__(kThreads, 4) long_rows(Task task) {
    const int lane = simt::thread_index() % kLanes;
    const int64_t row = simt::block_index() * (kThreads / kLanes) + simt::thread_index() / kLanes;
    if (row >= task.rows.count) return;  // a whole warp, whose lanes meet no others; with a row a block, none
    const Walk<In, kUnit, kLanes> walk{row_start<In>(task.rows, row), task.rows.classes};
    Target target{};
    if (lane == 0) target = look_up(task, walk.row, row);
    const auto scale = scale_of(task, row);
    LaneState all{kLowest, 0.0f, 0.0f, 0.0f};
    int at = 0;
    const int spans = walk.spans();
    typename Walk<In, kUnit, kLanes>::Span even;
    if constexpr (kUnit == kUnit16) {
        typename Walk<In, kUnit, kLanes>::Span odd;  // one is summed while the other arrives
        walk.fetch(even, 0, lane);
        for (int span = 0; span < spans; span += 2) {
            if (span + 1 < spans) walk.fetch(odd, span + 1, lane);
            append(all, at, walk.sum(even, span, lane, scale), span, scale);
            if (span + 1 == spans) break;
            if (span + 2 < spans) walk.fetch(even, span + 2, lane);
            append(all, at, walk.sum(odd, span + 1, lane, scale), span + 1, scale);
        }
    } else {  // half as many registers again for a span on its way: other warps fill the wait
        for (int span = 0; span < spans; ++span) {
            walk.fetch(even, span, lane);
            append(all, at, walk.sum(even, span, lane, scale), span, scale);
        }
    }
    settle_row(task, row, walk, lane, all, at, target, scale);
}

// A few long rows: a block for each span of each row, whose lanes' states [count, spans, kThreads] finish_rows merges.
template <class In, Unit kUnit, class Task>
__global__ void __launch_bounds__(kThreads) row_spans(Task task, Words* states, int spans) {
    const int64_t row = simt::block_index() / spans;
    const int span = int(simt::block_index() - row * spans), lane = simt::thread_index();
    const Walk<In, kUnit, kThreads> walk{row_start<In>(task.rows, row), task.rows.classes};
    typename Walk<In, kUnit, kThreads>::Span x;
    walk.fetch(x, span, lane);
    const LaneState s = walk.sum(x, span, lane, scale_of(task, row));
    simt::store_16(states + simt::block_index() * kThreads + lane,
                   {{as_bits(s.M), as_bits(s.R), as_bits(s.T), as_bits(s.Q)}});
}

template <class In, Unit kUnit, class Task>
__global__ void __launch_bounds__(kThreads) finish_rows(Task task, const Words* states, int spans) {
    const int64_t row = simt::block_index();
    const int lane = simt::thread_index();
    const Walk<In, kUnit, kThreads> walk{row_start<In>(task.rows, row), task.rows.classes};
    Target target{};
    if (lane == 0) target = look_up(task, walk.row, row);
    const auto scale = scale_of(task, row);
    LaneState all{kLowest, 0.0f, 0.0f, 0.0f};
    int at = 0;
    for (int span = 0; span < spans; ++span) {
        const Words s = simt::load_16_written(states + (row * spans + span) * kThreads + lane);
        append(all, at, {as_float(s.word[0]), as_float(s.word[1]), as_float(s.word[2]), as_float(s.word[3])}, span,
               scale);
    }
    settle_row(task, row, walk, lane, all, at, target, scale);
}

}  // namespace torchassay
