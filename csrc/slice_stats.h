// How the states of slices of a row's classes merge, for host and device: torchassay/reference/states.py.
//
// The tops stand in a state as they are in the input, so that it tells which is the larger one under a softcap too;
// the sums are relative to the capped u, as in row_stats.h. F is a number. `cap` makes {v, slope} of a logit: its
// capped value, and how steep the cap is there. Include this after the operations of row_stats.h.
#pragma once
#include "row_stats.h"

namespace torchassay {

template <class F>
struct SliceState {
    F m, u, R, T, Q;   // T over the temperature
    F S;               // Q with the squares of the slopes
    F x_y;             // the target's logit, if its class is in the slice
    F rest, gap, top;  // LinearTarget of what label smoothing spreads, but gap is not over the temperature
    int64_t k;         // the class of m, or ~k where the slice holds the target's
};

TORCHASSAY_HD int64_t class_of(int64_t k) { return k < 0 ? ~k : k; }

// Of no number of such a row a signal can be made: it holds a NaN, or more than one +inf.
template <class F>
TORCHASSAY_HD bool poisoned(const SliceState<F>& s) {
    return s.R != s.R || s.m != s.m;
}

// Adds a part's sums to those of all, relative to v, the capped all.u. What is so far below that its factor is 0 adds
// nothing, however far, but for a NaN.
template <class F, class Cap>
TORCHASSAY_HD void add_rest(SliceState<F>& all, F v, const SliceState<F>& part, const Inverse<F>& inverse,
                            const Cap& cap, F infinity) {
    const F to = cap(part.u).v, distance = select(part.u == -infinity, infinity, v - to);
    const F c = exp_difference(v, to, v - to, inverse, infinity);
    const F d = select(c == F{}, F{}, distance * inverse.high);
    all.R = all.R + part.R * c;
    all.T = all.T + c * (part.T + part.R * d);
    all.Q = all.Q + part.Q * (c * c);
    all.S = all.S + part.S * (c * c);
    all.rest = all.rest + part.rest;
    all.gap = all.gap + (part.gap + select(part.rest == F{}, F{}, part.rest * distance));
}

// The state of two slices, the first of the lower classes: the larger top wins, the first of equals; the other joins
// the rest.
template <class F, class Cap>
TORCHASSAY_HD SliceState<F> merge(const SliceState<F>& first, const SliceState<F>& second, const Inverse<F>& inverse,
                                  const Cap& cap, F infinity) {
    const bool later = second.m > first.m, second_k = !poisoned(first) && (later || poisoned(second));
    const F loser = select(later, first.m, second.m), kept = select(later, second.u, first.u);
    SliceState<F> all{};
    all.m = select(later, second.m, first.m);
    all.u = select(loser > kept, loser, kept);
    all.x_y = select(second.k < 0, second.x_y, first.x_y);
    all.top = select(later, second.top, first.top);
    all.k = class_of(second_k ? second.k : first.k);
    if (first.k < 0 || second.k < 0) all.k = ~all.k;

    const F slope = cap(loser).slope, v = cap(all.u).v, one = F{} + 1;
    SliceState<F> lone{};  // the top that lost
    lone.u = loser, lone.R = lone.Q = one, lone.S = slope * slope, lone.rest = select(later, first.top, second.top);
    add_rest(all, v, first, inverse, cap, infinity);
    add_rest(all, v, second, inverse, cap, infinity);
    add_rest(all, v, lone, inverse, cap, infinity);
    return all;
}

}  // namespace torchassay
