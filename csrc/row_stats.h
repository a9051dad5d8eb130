// The algebra of a row of logits, one source of truth for host and device.
//
// m is the largest logit, u the second largest; over all classes but the top one, relative to u,
//     R = sum e^(x_j - u)      T = sum e^(x_j - u) (u - x_j)      Q = sum e^(2 (x_j - u))
// The top class stays out of the sums, so nothing cancels against 1, and nothing underflows however confident the row.
//
// Under a temperature x_j - u stands for (x_j - u) / temperature in the exponents and in T; tops stay as they are.
//
// F is a number (double, device float) or a vector of numbers, one row in each lane. Include this after its operations:
// exp_nonpositive, log1p_nonnegative, expm1_nonpositive, square_root, select(condition, yes, no) and
// lost_in_product(a, b, product), which is a b - product.
#pragma once
#include "host_device.h"

namespace torchassay {

template <class F>
struct RowState {
    F m, u, R, T, Q;
};

// 1 / temperature in two parts: every gap multiplies its rounding.
template <class F>
struct Inverse {
    F high, low;
};

// e^((b - a) inverse) for b <= a, with the rounding errors of the difference (two-sum) and of the product taken along;
// 0 at b = -inf, and where it underflows: there an error may be as infinite as the product.
template <class F>
TORCHASSAY_HD F exp_difference(F a, F b, F difference, const Inverse<F>& inverse, F infinity) {
    const F back = difference - a;
    const F error = (a - (difference - back)) - (b + back);
    const F gap = difference * inverse.high;
    const F lost = lost_in_product(difference, inverse.high, gap) + (difference * inverse.low + error * inverse.high);
    const F value = exp_nonpositive(-gap);
    return select(b == -infinity, F{}, select(value == F{}, value, value - value * lost));
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
    F lse;
};

template <class F>
TORCHASSAY_HD Finished<F> finish(const RowState<F>& s, const Inverse<F>& inverse, F infinity) {
    const F one = F{} + 1;
    Finished<F> f;
    f.m = s.m;
    f.g = select(s.u == -infinity, F{}, (s.m - s.u) * inverse.high);
    f.z = exp_difference(s.m, s.u, s.m - s.u, inverse, infinity);
    f.r = f.z * s.R + (s.m - s.m);  // m - m: NaN for a top of +-inf
    f.c = one / (one + f.r);
    f.log_c = log1p_nonnegative(f.r, f.c);
    f.lse = f.m * inverse.high + f.log_c;
    return f;
}

// Without a temperature.
template <class F>
TORCHASSAY_HD Finished<F> finish(const RowState<F>& s, F infinity) {
    return finish(s, Inverse<F>{F{} + 1, F{}}, infinity);
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

// 1 - sum p^2. As z^2 Q is neither more than r nor than r^2, nothing cancels.
template <class F>
TORCHASSAY_HD F gini_of(const Finished<F>& f, const RowState<F>& s) {
    return f.c * f.c * (f.r * (f.r + 2) - f.z * f.z * s.Q);
}

// The class with logit x_y. "It is the top" is x_y == m: at a tie both forms of every formula agree.
template <class F>
struct Labelled {
    F loss, miss;       // -log p_y and 1 - p_y
    F x_y, e_y, not_y;  // its logit, e^(x_y - m), and 1 + r - e_y
    F gap;              // m - x_y
};

template <class F>
TORCHASSAY_HD Labelled<F> label(const Finished<F>& f, F x_y, const Inverse<F>& inverse, F infinity) {
    const F gap = (f.m - x_y) * inverse.high;
    const F e_y = exp_difference(f.m, x_y, f.m - x_y, inverse, infinity);
    const F not_y = F{} + 1 + f.r - e_y;
    return {gap + f.log_c, select(x_y == f.m, f.r, not_y) * f.c, x_y, e_y, not_y, gap};
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
    return select(l.x_y == f.m, margin, expm1_nonpositive(-l.gap) * f.c);
}

// ---- the loss under options: sum_j b_j (lse - l_j) + z_loss lse^2 with b >= 0, see torchassay/options.py

// A target's parts.
template <class F>
struct LinearTarget {
    F rest;  // sum of b_j over all classes but the top one
    F gap;   // likewise the sum of b_j (u - x_j)
    F top;   // b of the top class
};

// Adds `weight` at the class of the label.
template <class F>
TORCHASSAY_HD LinearTarget<F> add_label(const LinearTarget<F>& t, const Finished<F>& f, const Labelled<F>& l,
                                        F weight) {
    const auto top = l.x_y == f.m;
    // (u - x_y) is gap - g; a weight of 0 takes no part, also at -inf
    const F gap = select(top, F{}, select(weight == F{}, F{}, weight * (l.gap - f.g)));
    return {t.rest + select(top, F{}, weight), t.gap + gap, t.top + select(top, weight, F{})};
}

template <class F>
struct LinearLoss {
    F loss;
    F rest;  // t.rest + 2 z_loss lse: the gradient by the top logit is rest - beta (1 - p_k)
    F beta;  // the gradient by any other is beta p_j - b_j
};

template <class F>
TORCHASSAY_HD LinearLoss<F> linear_loss(const Finished<F>& f, const LinearTarget<F>& t, F z_loss) {
    const F total = t.rest + t.top, extra = z_loss * f.lse;
    const F distance = select(t.rest == F{}, F{}, t.rest * f.g);  // g may have overflowed
    return {total * f.log_c + distance + t.gap + extra * f.lse, t.rest + (extra + extra), total + (extra + extra)};
}

// beta p_k - b_k, of the top class, from whichever of p_k and 1 - p_k is small.
template <class F>
TORCHASSAY_HD F top_entry(F c, F r, F rest, F beta, F b) {
    return select(c > F{} + 0.5f, rest - beta * (r * c), beta * c - b);
}

// The root of a^2 + b^2, which neither underflows nor overflows.
template <class F>
TORCHASSAY_HD F hypotenuse(F a, F b) {
    const F x = select(a < F{}, -a, a), y = select(b < F{}, -b, b);
    const F large = select(x > y, x, y), small = select(x > y, y, x);
    const F ratio = small / large;
    return select(large == F{}, large, large * square_root(F{} + 1 + ratio * ratio)) + F{} * small;
}

// The norm of weight (softmax - onehot) and of the gradient 2 z_loss lse p: `extra` is 2 z_loss lse.
template <class F>
TORCHASSAY_HD F label_norm(const Finished<F>& f, const RowState<F>& s, const Labelled<F>& l, F weight, F extra) {
    const auto top = l.x_y == f.m;
    const F beta = weight + extra;
    const F others =
        select(top, f.z, F{} + 1) * square_root(select(top, s.Q, F{} + 1 + (f.z * f.z * s.Q - l.e_y * l.e_y))) * f.c;
    return hypotenuse(extra - beta * l.miss, beta * others);
}

// The same for a label of weight 1, `smoothing` of which is spread evenly over all classes: centred, never expanded.
template <class F>
TORCHASSAY_HD F smoothed_norm(const Finished<F>& f, const RowState<F>& s, const Labelled<F>& l, F smoothing, F classes,
                              F extra) {
    const F one = F{} + 1, n = select(classes > one, classes - one, one);
    const F beta = one + extra, off = beta * l.miss - smoothing / classes * (classes - one);
    const F squares = select(l.x_y == f.m, f.z * f.z * s.Q, one + (f.z * f.z * s.Q - l.e_y * l.e_y)) * f.c * f.c;
    const F centred = squares - l.miss * l.miss / n, variance = select(centred < F{}, F{}, centred);
    const F a = extra - off;
    return square_root(a * a + off * off / n + beta * beta * variance);
}

}  // namespace torchassay
