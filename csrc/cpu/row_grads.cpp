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

// What a row's gradient is made of, one number each.
template <class T>
struct RowTerms {
    T u, g;    // point of reference, and m - u
    T c, w;    // p of the top class; factor of e^(x_j - u) for the others
    T gL, gH;  // upstream
    T mu;
};

template <class T, bool kLossGrad, bool kEntropyGrad>
struct Entry {
    V<T> u, g, c, w, gL, gH, mu;
    TORCHASSAY_INLINE explicit Entry(const RowTerms<T>& t)
        : u(splat<V<T>>(t.u)),
          g(splat<V<T>>(t.g)),
          c(splat<V<T>>(t.c)),
          w(splat<V<T>>(t.w)),
          gL(splat<V<T>>(t.gL)),
          gH(splat<V<T>>(t.gH)),
          mu(splat<V<T>>(t.mu)) {}
    TORCHASSAY_INLINE V<T> operator()(V<T> x) const {
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
    RowTerms<T> t;
    const bool lone = u == T(-INFINITY);
    t.c = 1 / (1 + r);
    t.u = lone ? m : u;  // without a rest the top is its own point of reference
    t.w = lone ? t.c : z * t.c;
    t.g = m - t.u;
    t.gL = loss_grad ? upstream_at<T>(job.grad_loss, row) : T(0);
    t.gH = entropy_grad ? upstream_at<T>(job.grad_entropy, row) : T(0);
    t.mu = mu;
    if (outside) t.c = t.w = T(NAN);
    if (!entropy_grad)
        columns_of<T, In, true, false>(t, x + begin, out + begin, end - begin);
    else if (!loss_grad)
        columns_of<T, In, false, true>(t, x + begin, out + begin, end - begin);
    else
        columns_of<T, In, true, true>(t, x + begin, out + begin, end - begin);
    if (outside || y < begin || y >= end) return;
    // the entry of the target, where p_y - 1 must not be formed
    T entry = -t.gL * miss;
    if (entropy_grad) {
        const Entry<T, false, true> entropy_entry(t);
        entry += entropy_entry(splat<V<T>>(widen(x[y])))[0];
    }
    narrow(entry, out + y);
}

}  // namespace

namespace TORCHASSAY_ISA {
void grad_columns_any(const GradJob& job, int64_t row, int64_t begin, int64_t end) {
    TORCHASSAY_BY_DTYPE(grad_columns, row, begin, end)
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
