// Gradients of the loss and the entropy of rows of logits on the CPU: one read, one write, no reduction.
//
//     dx_j = gL p_j + gH p_j (a_j - mu),   dx_y = -gL miss + gH p_y (a_y - mu),   a_j = m - x_j
//
// p_j is e^(x_j - u) z / (1 + r) for every class but the top: m - x_j of a confident row is rounded, x_j - u of the
// classes that matter is not.
#include "kernels.h"
#include "vec_math.h"
#include "vec_memory.h"

namespace torchassay {
namespace {

template <class T>
using V = typename Simd<T>::V;

// What the gradient of a row is made of, the same number in all lanes, or of `lanes` rows.
template <class T>
struct RowTerms {
    V<T> u, g;    // point of reference, and m - u
    V<T> c, w;    // p of the top class; factor of e^(x_j - u) for the others
    V<T> gL, gH;  // upstream
    V<T> mu;
};

template <class T>
TORCHASSAY_INLINE RowTerms<T> terms_of(V<T> m, V<T> u, V<T> z, V<T> r, V<T> mu, V<T> gL, V<T> gH) {
    const auto lone = u == -INFINITY;
    const V<T> c = 1 / (1 + r), at = lone ? m : u;  // without a rest the top is its own point of reference
    return {at, m - at, c, lone ? c : z * c, gL, gH, mu};
}

template <class T, bool kLossGrad, bool kEntropyGrad>
struct Entry : RowTerms<T> {
    TORCHASSAY_INLINE Entry() = default;
    TORCHASSAY_INLINE explicit Entry(const RowTerms<T>& t) : RowTerms<T>(t) {}
    TORCHASSAY_INLINE V<T> operator()(V<T> x) const {
        const auto& [u, g, c, w, gL, gH, mu] = static_cast<const RowTerms<T>&>(*this);
        const V<T> d = clamp_exponent(x - u), below[1] = {min_or_second(V<T>{}, d)};
        V<T> e[1];
        exp_fast(below, e);
        const V<T> p = d > 0 ? c : e[0] * w;  // at a tie d = 0, z = 1: both agree
        if (!kEntropyGrad) return gL * p;
        const V<T> a = g - d - mu;  // exactly -mu for the top
        if (!kLossGrad) return gH * p * a;
        return p * fused(gH, a, gL);
    }
};

template <class T, class In, bool kLossGrad, bool kEntropyGrad>
TORCHASSAY_INLINE void columns_of(const RowTerms<T>& terms, const In* x, In* out, int64_t columns) {
    constexpr int n = Simd<T>::kLanes;
    const Entry<T, kLossGrad, kEntropyGrad> entry(terms);
    int64_t j = 0;
    for (; j + n <= columns; j += n) store<T>(out + j, entry(load<T>(x + j)));
    if (j == columns) return;
    if (columns > n)  // the last vector overlaps the one before and writes some entries again, the same
        store<T>(out + columns - n, entry(load<T>(x + columns - n)));
    else
        store_tail<T>(out + j, entry(load_tail<T>(x + j, int(columns - j))), int(columns - j));
}

template <class T>
TORCHASSAY_INLINE T upstream_at(const Upstream& g, int64_t row) {
    return static_cast<const T*>(g.data)[row * g.stride];
}

// Columns [begin, end) of one row.
template <class T, class In>
void grad_columns(const GradJob& job, int64_t row, int64_t begin, int64_t end) {
    const int64_t classes = job.rows.classes, count = job.rows.count();
    const In* x = RowCursor<In>(job.rows, row).next();
    In* out = static_cast<In*>(job.out) + row * classes;
    const T* stats = static_cast<const T*>(job.stats) + row;
    const T m = stats[0], u = stats[count], z = stats[2 * count], r = stats[3 * count];
    const T miss = stats[4 * count], mu = stats[5 * count];

    bool loss_grad = job.grad_loss.data, entropy_grad = job.grad_entropy.data;
    int64_t y = -1;
    bool outside = false;
    if (loss_grad) {
        y = target_at(job.targets, row);
        if (y == job.targets.ignore_index) {
            loss_grad = false;
            y = -1;
        } else {
            outside = y < 0 || y >= classes;
        }
    }
    if (!loss_grad && !entropy_grad) {
        std::memset(static_cast<void*>(out + begin), 0, (end - begin) * sizeof(In));
        return;
    }
    const auto all = [](T value) { return splat<V<T>>(value); };
    const T gL = loss_grad ? upstream_at<T>(job.grad_loss, row) : T(0);
    const T gH = entropy_grad ? upstream_at<T>(job.grad_entropy, row) : T(0);
    RowTerms<T> t = terms_of<T>(all(m), all(u), all(z), all(r), all(mu), all(gL), all(gH));
    if (outside) t.c = t.w = all(T(NAN));
    if (!entropy_grad)
        columns_of<T, In, true, false>(t, x + begin, out + begin, end - begin);
    else if (!loss_grad)
        columns_of<T, In, false, true>(t, x + begin, out + begin, end - begin);
    else
        columns_of<T, In, true, true>(t, x + begin, out + begin, end - begin);
    if (outside || y < begin || y >= end) return;
    // the entry of the target, where p_y - 1 must not be formed
    T entry = -gL * miss;
    if (entropy_grad) {
        const Entry<T, false, true> entropy_entry(t);
        entry += entropy_entry(splat<V<T>>(widen(x[y])))[0];
    }
    narrow(entry, out + y);
}

// What the gradient of `lanes` rows that are neighbours in memory is made of.
template <class T, bool kLossGrad, bool kEntropyGrad>
struct Neighbours {
    static constexpr int n = Simd<T>::kLanes;
    Entry<T, kLossGrad, kEntropyGrad> entry;
    int64_t at;  // of the first of them among those that are worked on
    typename Simd<T>::I skipped;
    V<T> own;      // the entries of the targets, where 1 - p_y must not be formed,
    int64_t y[n];  // and their classes; -1: none

    // Rows from `row` on, whose logits begin at x.
    template <class In>
    TORCHASSAY_INLINE void look_up(const GradJob& job, const In* x, int64_t row) {
        const auto stat = [&](int q) { return load<T>(static_cast<const T*>(job.stats) + q * job.rows.count() + row); };
        T upstream[2][n] = {}, x_y[n] = {};
        typename Simd<T>::Int ignored[n] = {}, outside[n] = {};
        for (int lane = 0; lane < n; ++lane) {
            if (kEntropyGrad) upstream[1][lane] = upstream_at<T>(job.grad_entropy, row + lane);
            y[lane] = -1;
            if (!kLossGrad) continue;
            const int64_t target = target_at(job.targets, row + lane);
            ignored[lane] = target == job.targets.ignore_index ? -1 : 0;
            if (ignored[lane]) continue;
            upstream[0][lane] = upstream_at<T>(job.grad_loss, row + lane);
            outside[lane] = target < 0 || target >= job.rows.classes ? -1 : 0;
            if (outside[lane]) continue;
            y[lane] = target;
            x_y[lane] = widen(x[target * job.rows.class_stride + lane]);
        }
        const V<T> gL = load<T>(upstream[0]), gH = load<T>(upstream[1]), nan = splat<V<T>>(T(NAN));
        RowTerms<T>& t = entry;
        t = terms_of<T>(stat(0), stat(1), stat(2), stat(3), stat(5), gL, gH);
        skipped = load_mask<T>(ignored);
        const auto wild = load_mask<T>(outside);
        t.c = wild ? nan : t.c;
        t.w = wild ? nan : t.w;
        own = -gL * stat(4);
        if (kEntropyGrad) own += Entry<T, false, true>(t)(load<T>(x_y));
    }
};

// Rows [begin, end) of one `inner`, at least as many as there are lanes; the last ones may be computed twice. Class by
// class, so that memory is read and written in its order.
template <class T, class In, bool kLossGrad, bool kEntropyGrad>
void grad_neighbours(const GradJob& job, int64_t begin, int64_t end) {
    constexpr int n = Simd<T>::kLanes;
    const int64_t classes = job.rows.classes, inner = job.rows.inner;
    const In* const x = RowCursor<In>(job.rows, begin).next();
    In* const out = static_cast<In*>(job.out) + begin / inner * inner * classes + begin % inner;
    const int groups = int((end - begin + n - 1) / n);
    Neighbours<T, kLossGrad, kEntropyGrad> rows[2 * kNeighbours / n];
    for (int g = 0; g < groups; ++g) {
        rows[g].at = begin + (g + 1) * n > end ? end - begin - n : g * n;
        rows[g].look_up(job, x + rows[g].at, begin + rows[g].at);
    }
    for (int64_t j = 0; j < classes; ++j)
        for (int g = 0; g < groups; ++g) {
            const In* const logits = x + j * job.rows.class_stride + rows[g].at;
            In* const entries = out + j * inner + rows[g].at;
            __builtin_prefetch(logits + kNeighbours);  // the next rows
            __builtin_prefetch(entries + kNeighbours, 1);
            V<T> dx = rows[g].entry(load<T>(logits));
            if (!kEntropyGrad) dx = rows[g].skipped ? V<T>{} : dx;  // also where an ignored row is poisoned
            store<T>(entries, dx);
        }
    for (int g = 0; g < groups && kLossGrad; ++g)
        for (int lane = 0; lane < n; ++lane) {
            const int64_t y = rows[g].y[lane];
            if (y >= 0) narrow(rows[g].own[lane], out + y * inner + rows[g].at + lane);
        }
}

template <class T, class In>
void grad_neighbours(const GradJob& job, int64_t begin, int64_t end) {
    if (!job.grad_entropy.data) return grad_neighbours<T, In, true, false>(job, begin, end);
    if (!job.grad_loss.data) return grad_neighbours<T, In, false, true>(job, begin, end);
    grad_neighbours<T, In, true, true>(job, begin, end);
}

}  // namespace

namespace TORCHASSAY_ISA {
void grad_columns_any(const GradJob& job, int64_t row, int64_t begin, int64_t end) {
    TORCHASSAY_BY_DTYPE(grad_columns, row, begin, end)
}
void grad_neighbours_any(const GradJob& job, int64_t begin, int64_t end) {
    TORCHASSAY_BY_DTYPE(grad_neighbours, begin, end)
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
