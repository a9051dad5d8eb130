// The algebra of a row of logits, one source of truth for host and device.
//
// m is the largest logit, u the second largest; over all classes but the top one, relative to u,
//     R = sum e^(x_j - u)      T = sum e^(x_j - u) (u - x_j)      Q = sum e^(2 (x_j - u))
// The top class stays out of the sums, so nothing cancels against 1, and nothing underflows however confident the row.
//
// F is a number (double, device float) or a vector of numbers, one row in each lane. Include this after its operations:
// exp_nonpositive, log1p_nonnegative, expm1_nonpositive, square_root and select(condition, yes, no).
#pragma once
#include "host_device.h"

namespace torchassay {

template <class F>
struct RowState {
    F m, u, R, T, Q;
};

// e^(b - a) for b <= a, with the rounding error of the difference (two-sum) taken along; 0 at b = -inf.
template <class F>
TORCHASSAY_HD F exp_difference(F a, F b, F difference, F infinity) {
    const F back = difference - a;
    const F error = (a - (difference - back)) - (b + back);
    const F value = exp_nonpositive(-difference);
    return select(b == -infinity, F{}, value - value * error);
}

// Adds a part's sums, relative to its own u, to sums relative to all.u >= u. A part without a rest has R = T = Q = 0,
// or NaN, which must pass: so its factor is 0, not its product.
template <class F>
TORCHASSAY_HD void add_rest(RowState<F>& all, F u, F R, F T, F Q, F infinity) {
    const auto none = u == -infinity;
    const F distance = select(none, F{}, all.u - u);
    const F c = select(none, F{}, exp_nonpositive(-distance));
    all.R = all.R + R * c;
    all.T = all.T + c * (T + R * distance);
    all.Q = all.Q + Q * (c * c);
}

// Joins the states of two disjoint sets of classes, in an order that the caller fixes.
template <class F>
TORCHASSAY_HD RowState<F> merge(const RowState<F>& first, const RowState<F>& second, F infinity) {
    const auto later = second.m > first.m;
    const F m = select(later, second.m, first.m), loser = select(later, first.m, second.m);
    const F kept = select(later, second.u, first.u);
    const F one = F{} + 1;
    RowState<F> all{m, select(loser > kept, loser, kept), F{}, F{}, F{}};
    add_rest(all, first.u, first.R, first.T, first.Q, infinity);
    add_rest(all, second.u, second.R, second.T, second.Q, infinity);
    add_rest(all, loser, one, F{}, one, infinity);
    return all;
}

// What every signal of a row is made of.
template <class F>
struct Finished {
    F m, g, z, r;
    F c;      // the probability of the top class, 1 / (1 + r)
    F log_c;  // minus its logarithm
};

template <class F>
TORCHASSAY_HD Finished<F> finish(const RowState<F>& s, F infinity) {
    const F one = F{} + 1;
    Finished<F> f;
    f.m = s.m;
    f.g = select(s.u == -infinity, F{}, s.m - s.u);
    f.z = exp_difference(s.m, s.u, s.m - s.u, infinity);
    f.r = f.z * s.R + (s.m - s.m);  // m - m: NaN for a top of +-inf
    f.c = one / (one + f.r);
    f.log_c = log1p_nonnegative(f.r, f.c);
    return f;
}

// mu = t / (1 + r); the entropy is log_c + mu. Where z underflowed, g R may have overflowed.
template <class F>
TORCHASSAY_HD F entropy_offset(const Finished<F>& f, const RowState<F>& s) {
    return select(f.z == F{}, F{}, f.z * (s.T + f.g * s.R) * f.c);
}

template <class F>
TORCHASSAY_HD F margin_of(const Finished<F>& f, const RowState<F>& s, F infinity) {
    return select(s.u == -infinity, F{} + 1, -expm1_nonpositive(-f.g)) * f.c;
}

// The class with logit x_y. "It is the top" is x_y == m: at a tie both forms of every formula agree.
template <class F>
struct Labelled {
    F loss, miss;       // -log p_y and 1 - p_y
    F x_y, e_y, not_y;  // its logit, e^(x_y - m), and 1 + r - e_y
};

template <class F>
TORCHASSAY_HD Labelled<F> label(const Finished<F>& f, F x_y, F infinity) {
    const F gap = f.m - x_y;
    const F e_y = exp_difference(f.m, x_y, gap, infinity);
    const F not_y = F{} + 1 + f.r - e_y;
    return {gap + f.log_c, select(x_y == f.m, f.r, not_y) * f.c, x_y, e_y, not_y};
}

template <class F>
TORCHASSAY_HD F grad_norm_of(const Finished<F>& f, const RowState<F>& s, const Labelled<F>& l) {
    const auto top = l.x_y == f.m;
    const F one = F{} + 1;
    const F like = s.R * s.R + s.Q;  // times z^2, which would underflow
    const F unlike = l.not_y * l.not_y + one + (f.z * f.z * s.Q - l.e_y * l.e_y);
    return select(top, f.z, one) * square_root(select(top, like, unlike)) * f.c;
}

template <class F>
TORCHASSAY_HD F target_margin_of(const Finished<F>& f, const Labelled<F>& l, F margin) {
    return select(l.x_y == f.m, margin, expm1_nonpositive(l.x_y - f.m) * f.c);
}

}  // namespace torchassay
