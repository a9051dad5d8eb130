// Gradients of the loss and the entropy of rows of logits under options: one read, one write, no reduction.
//
//     dx_j = slope_j / temperature (gL (beta p_j - b_j) + gH p_j (a_j - mu)),   a_j = (m - v_j) / temperature
//
// p_j is e^((v_j - u) / temperature) z / (1 + r) for every class but the top, whose entry is rest - beta (1 - p_k)
// where p_k is the larger part of 1.
#include "row_sums.h"
#include "softcap.h"

namespace torchassay {
namespace {

// What the gradient of a row is made of, the same number in all lanes, or of `lanes` rows.
template <class T>
struct GradTerms {
    V<T> u, g;           // point of reference, and (m - u) / temperature
    V<T> middle, exact;  // logits above are the top; above `exact`, the top with an entry of its own
    V<T> c, w;           // p of the top class; factor of the exponential for the others
    V<T> inverse, beta, top;
    V<T> gL, gH, mu;
};

template <class T>
TORCHASSAY_INLINE GradTerms<T> terms_of(const V<T> (&stats)[7], V<T> inverse, V<T> gL, V<T> gH) {
    const auto [m, u, z, r, rest, mu, beta] = stats;
    const auto lone = u == -INFINITY;
    const V<T> c = 1 / (1 + r), at = lone ? m : u;  // without a rest the top is its own point of reference
    // halfway, because v may be computed with another rounding here
    const V<T> middle = lone ? u : u + (m - u) * T(0.5);
    const V<T> exact = c > T(0.5) ? middle : splat<V<T>>(INFINITY);
    return {at,   (m - at) * inverse,    middle, exact, c, lone ? c : z * c, inverse,
            beta, rest - beta * (r * c), gL,     gH,    mu};
}

template <class T, bool kCapped, bool kEntropyGrad>
struct Entry : GradTerms<T> {
    Softcap<T> cap{1, -2};
    TORCHASSAY_INLINE Entry() = default;
    TORCHASSAY_INLINE Entry(const GradTerms<T>& t, const Softcap<T>& cap) : GradTerms<T>(t), cap(cap) {}
    TORCHASSAY_INLINE V<T> operator()(V<T> x, V<T> b) const {
        const GradTerms<T>& t = *this;
        V<T> v = x, scale = t.inverse;
        if (kCapped) {
            const V<T> raw[1] = {x};
            V<T> capped[1], slope[1];
            cap(raw, capped, slope);
            v = capped[0];
            scale *= slope[0];
        }
        const V<T> d = clamp_exponent((v - t.u) * t.inverse), below[1] = {min_or_second(V<T>{}, d)};
        V<T> e[1];
        exp_fast(below, e);
        const V<T> p = v > t.middle ? t.c : e[0] * t.w;
        const V<T> entry = v > t.exact ? t.top : fused(t.beta, p, -b);
        if (!kEntropyGrad) return t.gL * entry * scale;
        const V<T> a = v > t.middle ? -t.mu : t.g - d - t.mu;  // exactly -mu for the top, however it is rounded here
        return fused(t.gL, entry, t.gH * p * a) * scale;
    }
};

// b of the classes, the label's own left out: the same for every row, or the row's.
template <class T, bool kShared, bool kOwn>
struct Target {
    const T *spread, *own;
    const T* t;        // probabilities of the row
    int64_t t_stride;  // from class to class
    TORCHASSAY_INLINE V<T> along(int64_t j) const {
        if (kOwn) return fused(load<T>(own + j), load<T>(t + j), load<T>(spread + j));
        return kShared ? load<T>(spread + j) : V<T>{};
    }
    TORCHASSAY_INLINE V<T> along_tail(int64_t j, int columns) const {
        if (kOwn) return fused(load<T>(own + j), load_tail<T>(t + j, columns), load<T>(spread + j));
        return kShared ? load<T>(spread + j) : V<T>{};
    }
    // of rows from the row `at` on, whose probabilities are neighbours
    TORCHASSAY_INLINE V<T> across(int64_t j, int64_t at) const {
        if (kOwn) return fused(splat<V<T>>(own[j]), load<T>(t + j * t_stride + at), splat<V<T>>(spread[j]));
        return kShared ? splat<V<T>>(spread[j]) : V<T>{};
    }
};

// Calls `call` with the row's target as a type.
template <class T, class Call>
TORCHASSAY_INLINE void by_target(const OptionGradJob& job, int64_t first, int64_t t_stride, const Call& call) {
    const T* spread = static_cast<const T*>(job.spread);
    if (!job.grad_loss.data || !spread)
        call(Target<T, false, false>{});
    else if (job.own)
        call(Target<T, false, true>{spread, static_cast<const T*>(job.own),
                                    static_cast<const T*>(job.options.probabilities) + first, t_stride});
    else
        call(Target<T, true, false>{spread, nullptr, nullptr, 0});
}

template <class T>
TORCHASSAY_INLINE T upstream_at(const Upstream& g, int64_t row) {
    return static_cast<const T*>(g.data)[row * g.stride];
}

// The label's part of b at its class, and of what is spread over all.
template <class T>
TORCHASSAY_INLINE T b_at_label(const OptionGradJob& job, int64_t y) {
    const T w = job.options.weight ? static_cast<const T*>(job.options.weight)[y] : T(1);
    return T(1 - job.options.label_smoothing) * w + (job.spread ? static_cast<const T*>(job.spread)[y] : T(0));
}

// What a row's label asks for.
struct Label {
    int64_t y;  // -1: none to be treated on its own
    bool ignored, outside;
};
inline Label label_of(const OptionGradJob& job, int64_t row) {
    if (!job.grad_loss.data || !job.targets.data) return {-1, false, false};
    const Targets& targets = job.targets;
    const int64_t y = target_at(targets, row), total = targets.total ? targets.total : job.rows.classes;
    const bool ignored = y == targets.ignore_index, outside = !ignored && (y < 0 || y >= total);
    return {column_at(targets, job.rows.classes, row), ignored, outside};
}

// ---- one row along memory

template <class T, class In, class Entry, class Target>
TORCHASSAY_INLINE void columns_of(const Entry& entry, const Target& target, const In* x, In* out, int64_t begin,
                                  int64_t end) {
    constexpr int n = Simd<T>::kLanes;
    int64_t j = begin;
    for (; j + n <= end; j += n) store<T>(out + j, entry(load<T>(x + j), target.along(j)));
    if (j == end) return;
    if (end - begin > n) {  // the last vector overlaps the one before and writes some entries again, the same
        j = end - n;
        store<T>(out + j, entry(load<T>(x + j), target.along(j)));
    } else {
        const int columns = int(end - j);
        store_tail<T>(out + j, entry(load_tail<T>(x + j, columns), target.along_tail(j, columns)), columns);
    }
}

// Columns [begin, end) of one row.
template <class T, class In>
void option_columns(const OptionGradJob& job, int64_t row, int64_t begin, int64_t end) {
    const int64_t classes = job.rows.classes;
    const In* x = RowCursor<In>(job.rows, row).next();
    In* out = static_cast<In*>(job.out) + row * classes;
    const Label label = label_of(job, row);
    const bool entropy_grad = job.grad_entropy.data;
    if (!entropy_grad && (label.ignored || !job.grad_loss.data)) {
        std::memset(static_cast<void*>(out + begin), 0, (end - begin) * sizeof(In));
        return;
    }
    V<T> stats[7];
    for (int q = 0; q < 7; ++q) stats[q] = splat<V<T>>(static_cast<const T*>(job.stats)[q * job.rows.count() + row]);
    const T given = job.grad_loss.data && !label.ignored ? upstream_at<T>(job.grad_loss, row) : T(0);
    const V<T> gL = splat<V<T>>(label.outside ? T(NAN) : given);
    const V<T> gH = splat<V<T>>(entropy_grad ? upstream_at<T>(job.grad_entropy, row) : T(0));
    const GradTerms<T> terms = terms_of<T>(stats, inverse_of<T>(job, row, 1).high, gL, gH);
    const auto fill = [&](const auto& entry) TORCHASSAY_INLINE_LAMBDA {
        by_target<T>(job, row * classes, 1, [&](const auto& target) TORCHASSAY_INLINE_LAMBDA {
            columns_of<T>(entry, target, x, out, begin, end);
        });
        if (label.y < begin || label.y >= end) return;
        const V<T> x_y = splat<V<T>>(widen(x[label.y])), b_y = splat<V<T>>(b_at_label<T>(job, label.y));
        narrow(entry(x_y, b_y)[0], out + label.y);
    };
    const Softcap<T> softcap = softcap_of<T>(job);
    if (job.capped())
        entropy_grad ? fill(Entry<T, true, true>(terms, softcap)) : fill(Entry<T, true, false>(terms, softcap));
    else
        entropy_grad ? fill(Entry<T, false, true>(terms, softcap)) : fill(Entry<T, false, false>(terms, softcap));
}

// ---- `lanes` rows that are neighbours in memory

template <class T, bool kCapped, bool kEntropyGrad>
struct Neighbours {
    static constexpr int n = Simd<T>::kLanes;
    Entry<T, kCapped, kEntropyGrad> entry;
    int64_t at;  // of the first of them among those that are worked on
    typename Simd<T>::I skipped;
    V<T> own;  // the entries of the labels
    Label label[n];

    // Rows from `row` on, whose logits begin at x.
    template <class In>
    TORCHASSAY_INLINE void look_up(const OptionGradJob& job, const In* x, int64_t row) {
        T upstream[2][n] = {}, x_y[n] = {}, b_y[n] = {};
        typename Simd<T>::Int ignored[n];
        for (int lane = 0; lane < n; ++lane) {
            label[lane] = label_of(job, row + lane);
            ignored[lane] = label[lane].ignored || !job.grad_loss.data ? -1 : 0;
            if (!ignored[lane]) upstream[0][lane] = upstream_at<T>(job.grad_loss, row + lane);
            if (label[lane].outside) upstream[0][lane] = T(NAN);
            if (kEntropyGrad) upstream[1][lane] = upstream_at<T>(job.grad_entropy, row + lane);
            if (label[lane].y < 0) continue;
            x_y[lane] = widen(x[label[lane].y * job.rows.class_stride + lane]);
            b_y[lane] = b_at_label<T>(job, label[lane].y);
        }
        V<T> stats[7];
        for (int q = 0; q < 7; ++q) stats[q] = load<T>(static_cast<const T*>(job.stats) + q * job.rows.count() + row);
        const V<T> inverse = inverse_of<T>(job, row, n).high;
        entry = {terms_of<T>(stats, inverse, load<T>(upstream[0]), load<T>(upstream[1])), softcap_of<T>(job)};
        skipped = load_mask<T>(ignored);
        own = entry(load<T>(x_y), load<T>(b_y));
    }
};

// Rows [begin, end) of one `inner`, at least as many as there are lanes; the last ones may be computed twice. Class by
// class, so that memory is read and written in its order.
template <class T, class In, bool kCapped, bool kEntropyGrad>
void option_neighbours(const OptionGradJob& job, int64_t begin, int64_t end) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t classes = job.rows.classes, inner = job.rows.inner, stride = job.rows.class_stride;
    const int64_t dense =
        begin / inner * inner * classes + begin % inner;  // the first entry in [outer, classes, inner]
    const In* const x = RowCursor<In>(job.rows, begin).next();
    In* const out = static_cast<In*>(job.out) + dense;
    const int groups = int((end - begin + n - 1) / n);
    Neighbours<T, kCapped, kEntropyGrad> rows[2 * kNeighbours / n];
    for (int g = 0; g < groups; ++g) {
        rows[g].at = begin + (g + 1) * n > end ? end - begin - n : g * n;
        rows[g].look_up(job, x + rows[g].at, begin + rows[g].at);
    }
    by_target<T>(job, dense, inner, [&](const auto& target) TORCHASSAY_INLINE_LAMBDA {
        for (int64_t j = 0; j < classes; ++j)
            for (int g = 0; g < groups; ++g) {
                const int64_t at = rows[g].at;
                __builtin_prefetch(x + j * stride + at + kNeighbours);  // the next rows
                __builtin_prefetch(out + j * inner + at + kNeighbours, 1);
                V<T> dx = rows[g].entry(load<T>(x + j * stride + at), target.across(j, at));
                if (!kEntropyGrad) dx = rows[g].skipped ? V<T>{} : dx;  // also where an ignored row is poisoned
                store<T>(out + j * inner + at, dx);
            }
    });
    for (int g = 0; g < groups; ++g)
        for (int lane = 0; lane < n; ++lane) {
            const int64_t y = rows[g].label[lane].y;
            if (y >= 0) narrow(rows[g].own[lane], out + y * inner + rows[g].at + lane);
        }
}

template <class T, class In>
void option_neighbours(const OptionGradJob& job, int64_t begin, int64_t end) {
    if (job.grad_entropy.data)
        job.capped() ? option_neighbours<T, In, true, true>(job, begin, end)
                     : option_neighbours<T, In, false, true>(job, begin, end);
    else
        job.capped() ? option_neighbours<T, In, true, false>(job, begin, end)
                     : option_neighbours<T, In, false, false>(job, begin, end);
}

}  // namespace

namespace TORCHASSAY_ISA {
void option_columns_any(const OptionGradJob& job, int64_t row, int64_t begin, int64_t end) {
    TORCHASSAY_BY_DTYPE(option_columns, row, begin, end)
}
void option_neighbours_any(const OptionGradJob& job, int64_t begin, int64_t end) {
    TORCHASSAY_BY_DTYPE(option_neighbours, begin, end)
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
