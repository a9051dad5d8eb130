// Scores under options that weigh every class: rows are mapped into scratch, summed there, and swept
// again for the norm of the gradient, which no expanded form gives where p comes near to the target.
#include "option_sweeps.h"

#include "rows_along_memory.h"
#include "rows_in_lanes.h"

namespace torchassay {
namespace {

// Maps vectors of logits, and of probabilities, into a block.
template <class T, bool kCapped, bool kOwn>
struct Map {
    Softcap<T> cap;
    const T *own, *spread;
    TwoLargest<V<T>> top{splat<V<T>>(-INFINITY), splat<V<T>>(-INFINITY)};
    V<T> highest = splat<V<T>>(-INFINITY);
    V<T> gap{};  // of classes at -inf: NaN where b = 0, as in PyTorch; the sums pass over every b = 0

    TORCHASSAY_INLINE explicit Map(const OptionTerms& terms)
        : cap(softcap_of<T>(terms)),
          own(static_cast<const T*>(terms.own)),
          spread(static_cast<const T*>(terms.spread)) {}

    // Vectors s to s + K: logits x, probabilities t, and the two parts of their targets. Lanes not `real` are padding.
    template <int K, class Real>
    TORCHASSAY_INLINE void operator()(const Block<T>& to, int64_t s, const V<T> (&x)[K], const V<T> (&t)[K],
                                      const V<T> (&kept)[K], const V<T> (&share)[K], Real real) {
        constexpr int n = Simd<T>::kLanes;
        const V<T> none = splat<V<T>>(-INFINITY), zero{};
        V<T> v[K], slope[K];
        if (kCapped) cap(x, v, slope);
        for (int i = 0; i < K; ++i) {
            const int64_t at = (s + i) * n;
            if (kCapped) {
                highest = max_or_second(x[i], highest);
                store<T>(to.slope + at, slope[i]);
            }
            const V<T> logit = kCapped ? v[i] : x[i];
            if (kOwn) {
                const V<T> b = fused(kept[i], t[i], share[i]);
                store<T>(to.b + at, real.select(b, zero));
                gap += real.select(logit == none ? b * logit : zero, zero);
            }
            store<T>(to.v + at, logit);
            top.add(logit);
        }
    }
};

struct AllReal {
    template <class V>
    TORCHASSAY_INLINE V select(V yes, V) const {
        return yes;
    }
};
template <class I>
struct FirstReal {
    I mask;
    template <class V>
    TORCHASSAY_INLINE V select(V yes, V no) const {
        return mask ? yes : no;
    }
};

// Vectors of padding up to the end of a block.
template <class T>
TORCHASSAY_INLINE void pad(const Block<T>& to, int64_t s) {
    constexpr int n = Simd<T>::kLanes;
    for (; s < to.steps; ++s) {
        store<T>(to.v + s * n, splat<V<T>>(-INFINITY));
        store<T>(to.slope + s * n, V<T>{});
        store<T>(to.b + s * n, V<T>{});
    }
}

// ---- rows in lanes

template <class T, bool kCapped, bool kOwn>
void map_block(const OptionJob& job, const Block<T>& block, SweptRows<T>& rows) {
    constexpr int n = Simd<T>::kLanes;
    Map<T, kCapped, kOwn> map(job);
    const auto columns = [&](int64_t j, auto how_many) TORCHASSAY_INLINE_LAMBDA {
        constexpr int K = decltype(how_many)::value;
        V<T> x[K], t[K] = {}, kept[K] = {}, share[K] = {};
        for (int i = 0; i < K; ++i) {
            x[i] = load<T>(block.v + (j + i) * n);
            if (!kOwn) continue;
            t[i] = load<T>(block.b + (j + i) * n);
            kept[i] = splat<V<T>>(map.own[j + i]), share[i] = splat<V<T>>(map.spread[j + i]);
        }
        map(block, j, x, t, kept, share, AllReal{});
    };
    int64_t j = 0;
    for (; kCapped && j + 8 <= job.rows.classes; j += 8) columns(j, std::integral_constant<int, 8>{});
    for (; j + 4 <= job.rows.classes; j += 4) columns(j, std::integral_constant<int, 4>{});
    for (; j < job.rows.classes; ++j) columns(j, std::integral_constant<int, 1>{});
    pad(block, job.rows.classes);
    store<T>(rows.m, map.top.m);
    store<T>(rows.u, map.top.u);
    store<T>(rows.highest, kCapped ? map.highest : map.top.m);
    store<T>(rows.gap, map.gap);
}

// Scores `count` rows whose logits, and probabilities, stand in a block.
template <class T>
void score_block(OptionJob& job, const Block<T>& block, int64_t i, int count, SweptRows<T>& rows) {
    constexpr int n = Simd<T>::kLanes;
    if (job.options.probabilities)
        job.capped() ? map_block<T, true, true>(job, block, rows) : map_block<T, false, true>(job, block, rows);
    else
        job.capped() ? map_block<T, true, false>(job, block, rows) : map_block<T, false, false>(job, block, rows);
    OwnLabels<T> own;
    own.counted = ~own.counted;
    if (job.targets.data)
        own = look_up_labels<T>(job, [&](int lane, int64_t y) { return block.v[y * n + lane]; }, i, count);
    const V<T> wild = load<T>(rows.gap);
    sum_block<T, true>(job, block, load<T>(rows.m), load<T>(rows.u), inverse_of<T>(job, i, count).high, rows, 0);
    store<T>(rows.gap, load<T>(rows.gap) - wild);
    double squares[n];
    if (job.wants(kGini)) squares_of(block).each(squares);
    for (int lane = 0; job.wants(kGini) && lane < n; ++lane) rows.Q[lane] = T(squares[lane] - 1);
    const Entries<T> entries = finish_swept(job, rows, own, i, count);
    if (!job.wants(kGradNorm)) return;
    if (job.targets.data)
        for (int lane = 0; lane < count; ++lane) {
            const int64_t y = target_at(job.targets, i + lane);
            if (y < 0 || y >= job.rows.classes) continue;
            T& e = block.v[y * n + lane];
            e = e == kTopMark ? e : T(kLabelMark);
        }
    square_block<T, true>(job, block, entries.factor, entries.top, entries.label).each(squares);
    T norm[n];
    for (int lane = 0; lane < n; ++lane) norm[lane] = T(std::sqrt(squares[lane]));
    write<T>(job.out[kGradNorm], i, count, entries.counted ? entries.inverse * load<T>(norm) : V<T>{});
}

// ---- rows along memory

template <class T, class In, bool kCapped, bool kOwn>
void map_row(const OptionJob& job, const In* x, const T* t, const Block<T>& block, SweptRows<T>& rows, int row) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t classes = job.rows.classes;
    Map<T, kCapped, kOwn> map(job);
    const V<T> zero{};
    const auto columns = [&](int64_t s, auto how_many) TORCHASSAY_INLINE_LAMBDA {
        constexpr int K = decltype(how_many)::value;
        V<T> logits[K], probabilities[K] = {}, kept[K] = {}, share[K] = {};
        for (int i = 0; i < K; ++i) {
            const int64_t j = (s + i) * n;
            logits[i] = load<T>(x + j);
            if (kOwn)
                probabilities[i] = load<T>(t + j), kept[i] = load<T>(map.own + j), share[i] = load<T>(map.spread + j);
        }
        map(block, s, logits, probabilities, kept, share, AllReal{});
    };
    int64_t s = 0;
    for (; kCapped && s + 8 <= classes / n; s += 8) {
        fetch<T, kOwn>(block, s, 0);
        fetch<T, kOwn>(block, s + 4, 0);
        columns(s, std::integral_constant<int, 8>{});
    }
    for (; s + 4 <= classes / n; s += 4) {
        if (kCapped || kOwn) fetch<T, kOwn>(block, s, 0);
        columns(s, std::integral_constant<int, 4>{});
    }
    for (; s < classes / n; ++s) columns(s, std::integral_constant<int, 1>{});
    if (const int left = int(classes % n)) {
        const int64_t j = s * n;
        typename Simd<T>::Int real[n] = {};
        for (int lane = 0; lane < left; ++lane) real[lane] = -1;
        const FirstReal<typename Simd<T>::I> first{load_mask<T>(real)};
        const V<T> logits[1] = {load_tail<T>(x + j, left)},
                   probabilities[1] = {kOwn ? load_tail<T>(t + j, left) : zero};
        const V<T> kept[1] = {kOwn ? load<T>(map.own + j) : zero}, share[1] = {kOwn ? load<T>(map.spread + j) : zero};
        map(block, s, logits, probabilities, kept, share, first);
        ++s;
    }
    pad(block, s);
    const T m = max_lane(map.top.m);
    const auto holders = map.top.m == m;
    const unsigned mask = lane_mask(holders);
    rows.m[row] = m;
    rows.u[row] = mask & (mask - 1) ? m : max_lane(holders ? map.top.u : map.top.m);  // in two lanes: a tie
    rows.highest[row] = kCapped ? max_lane(map.highest) : m;
    Wide<T> gap;
    gap.add(map.gap);
    rows.gap[row] = T(gap.all());
}

// Scores `count` rows, each in a block of its own.
template <class T>
void score_group(OptionJob& job, const Block<T>* blocks, int64_t i, int count, SweptRows<T>& rows) {
    OwnLabels<T> own;
    own.counted = ~own.counted;
    if (job.targets.data)
        own = look_up_labels<T>(job, [&](int lane, int64_t y) { return blocks[lane].v[y]; }, i, count);
    const auto all = [](T value) { return splat<V<T>>(value); };
    const V<T> inverse = inverse_of<T>(job, i, count).high, wild = load<T>(rows.gap);
    for (int r = 0; r < count; ++r)
        sum_block<T, false>(job, blocks[r], all(rows.m[r]), all(rows.u[r]), all(inverse[r]), rows, r);
    store<T>(rows.gap, load<T>(rows.gap) - wild);
    for (int r = 0; job.wants(kGini) && r < count; ++r) rows.Q[r] = T(squares_of(blocks[r]).all() - 1);
    const Entries<T> entries = finish_swept(job, rows, own, i, count);
    if (!job.wants(kGradNorm)) return;
    T norm[Simd<T>::kLanes] = {};
    for (int r = 0; r < count; ++r) {
        if (job.targets.data) {
            const int64_t y = target_at(job.targets, i + r);
            if (y >= 0 && y < job.rows.classes && blocks[r].v[y] != kTopMark) blocks[r].v[y] = kLabelMark;
        }
        const double squares =
            square_block<T, false>(job, blocks[r], all(entries.factor[r]), all(entries.top[r]), all(entries.label[r]))
                .all();
        norm[r] = T(std::sqrt(squares));
    }
    write<T>(job.out[kGradNorm], i, count, entries.counted ? entries.inverse * load<T>(norm) : V<T>{});
}

// ---- entry points

template <class T, class In>
void predict(const OptionJob& job, const In* const* logits, int64_t i, int count, const SweptRows<T>& rows) {
    auto* prediction = static_cast<int64_t*>(job.out[kPrediction]);
    if (!prediction) return;
    const int64_t stride = job.rows.class_stride, classes = job.rows.classes;
    for (int lane = 0; lane < count; ++lane) {
        const In* const x = logits[lane];
        int64_t k = 0;
        if (stride == 1)
            k = column_of<T, In>({x, classes, 0}, rows.highest[lane]);
        else
            while (k < classes - 1 && widen(x[k * stride]) != rows.highest[lane]) ++k;
        prediction[i + lane] = rows.R[lane] == rows.R[lane] ? k : first_nan(x, job.rows, k);
    }
}

template <class T, class In>
void sweep_lanes(OptionJob& job, int64_t begin, int64_t end, void* scratch) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t classes = job.rows.classes, stride = job.rows.class_stride, steps = (classes + 3) / 4 * 4;
    const Block<T> block = block_in<T>(scratch, steps, 0, steps);
    const T* const probabilities = static_cast<const T*>(job.options.probabilities);
    RowCursor<In> cursor(job.rows, begin);
    const In* const first = stride == 1 ? nullptr : RowCursor<In>(job.rows, begin).next();
    for (int64_t i = begin; i < end; i += n) {
        SweptRows<T> rows;
        const In* x[n];
        if (stride == 1) {
            const int count = int(end - i < n ? end - i : n);
            const T* t[n];
            for (int lane = 0; lane < n; ++lane) {  // spare lanes repeat the first row
                x[lane] = lane < count ? cursor.next() : x[0];
                if (probabilities) t[lane] = probabilities + (lane < count ? i + lane : i) * classes;
            }
            transpose<T, In>(x, classes, block.v);
            if (probabilities) transpose<T, T>(t, classes, block.b);
            score_block(job, block, i, count, rows);
            predict<T, In>(job, x, i, count, rows);
        } else {  // rows of one `inner`, at least as many as there are lanes; the last ones may be computed twice
            if (i + n > end) i = end - n;
            for (int lane = 0; lane < n; ++lane) x[lane] = first + (i - begin) + lane;
            gather(x[0], rows_after(job.rows, x[0], i, n), stride, classes, block.v);
            const int64_t inner = job.rows.inner;
            if (probabilities) {
                const T* const t = probabilities + i / inner * inner * classes + i % inner;
                gather(t, t + n, inner, classes, block.b);
            }
            score_block(job, block, i, n, rows);
            predict<T, In>(job, x, i, n, rows);
        }
    }
}

template <class T, class In>
void sweep_along(OptionJob& job, int64_t begin, int64_t end, void* scratch) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t classes = job.rows.classes, steps = ((classes + n - 1) / n + 3) / 4 * 4;
    const int64_t at_once = swept_at_once(classes) < n ? swept_at_once(classes) : n;
    const T* const probabilities = static_cast<const T*>(job.options.probabilities);
    RowCursor<In> cursor(job.rows, begin);
    for (int64_t i = begin; i < end; i += at_once) {
        const int count = int(end - i < at_once ? end - i : at_once);
        SweptRows<T> rows;
        const In* x[n];
        Block<T> blocks[n];
        for (int r = 0; r < count; ++r) {
            x[r] = cursor.next();
            blocks[r] = block_in<T>(scratch, at_once * steps, r * steps, steps);
            const In* const next = x[r] + at_once * job.rows.inner_stride;
            blocks[r].next = reinterpret_cast<const char*>(next), blocks[r].bytes = n * sizeof(In);
            const T* const t = probabilities ? probabilities + (i + r) * classes : nullptr;
            if (probabilities) blocks[r].next_b = reinterpret_cast<const char*>(t + at_once * classes);
            if (probabilities)
                job.capped() ? map_row<T, In, true, true>(job, x[r], t, blocks[r], rows, r)
                             : map_row<T, In, false, true>(job, x[r], t, blocks[r], rows, r);
            else
                job.capped() ? map_row<T, In, true, false>(job, x[r], t, blocks[r], rows, r)
                             : map_row<T, In, false, false>(job, x[r], t, blocks[r], rows, r);
        }
        score_group(job, blocks, i, count, rows);
        predict<T, In>(job, x, i, count, rows);
    }
}

template <class T, class In>
void sweep_rows(OptionJob& job, int64_t begin, int64_t end, void* scratch) {
    const bool in_lanes = job.rows.class_stride != 1 || job.rows.classes <= kInLanes;
    in_lanes ? sweep_lanes<T, In>(job, begin, end, scratch) : sweep_along<T, In>(job, begin, end, scratch);
}

}  // namespace

namespace TORCHASSAY_ISA {
void sweep_rows_any(OptionJob& job, int64_t begin, int64_t end, void* scratch) {
    TORCHASSAY_BY_DTYPE(sweep_rows, begin, end, scratch)
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
