// How the states of slices of a row's classes join: torchassay/reference/states.py. In double, whatever they are kept in.
#pragma once
#include <math.h>

#include "row_sums.h"

namespace torchassay {
namespace {

struct Slice {
    double m, u, R, T, Q, x_y, rest, gap, top;
    int64_t k;
};

struct CappedNumber {
    double v, slope;
};
TORCHASSAY_INLINE CappedNumber capped_at(const OptionTerms& terms, double x) {
    if (!terms.capped()) return {x, 1};
    if (x - x != 0) return {x, 0};
    const double t = ::tanh(x / terms.options.softcap);
    return {terms.options.softcap * t, 1 - t * t};
}
TORCHASSAY_INLINE double square(double x) { return x * x; }

// Slice `part` of row i.
template <class T>
TORCHASSAY_INLINE Slice slice_of(const States& states, int64_t part, int64_t i) {
    const int64_t count = states.count, numbers = states.smoothed ? 9 : 6;
    const T* at = static_cast<const T*>(states.numbers) + part * numbers * count + i;
    double x[9] = {};
    for (int64_t q = 0; q < numbers; ++q) x[q] = double(at[q * count]);
    return {x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], states.k[part * count + i]};
}

// Joins the next slice to those before.
TORCHASSAY_INLINE void join(Slice& all, const Slice& next, const OptionTerms& terms, double inverse) {
    const bool later = next.m > all.m;
    const double loser = later ? all.m : next.m, kept = later ? next.u : all.u;
    const double u = loser > kept ? loser : kept, v = capped_at(terms, u).v, lost = later ? all.top : next.top;
    Slice both{later ? next.m : all.m, u, 0, 0, 0, next.k < 0 ? next.x_y : all.x_y, 0, 0, later ? next.top : all.top, 0};
    const auto add = [&](double at, double R, double T, double Q, double rest, double gap) {
        const bool none = at == -INFINITY;
        const double raw = none ? 0 : v - capped_at(terms, at).v, d = raw * inverse;
        const double c = none ? 0 : exp_nonpositive(-d);
        both.R += R * c;
        both.T += c * (T + R * d);
        both.Q += Q * (c * c);
        both.rest += rest;
        both.gap += gap + (rest == 0 ? 0 : rest * (none && u != -INFINITY ? INFINITY : raw));
    };
    add(all.u, all.R, all.T, all.Q, all.rest, all.gap);
    add(next.u, next.R, next.T, next.Q, next.rest, next.gap);
    add(loser, 1, 0, square(capped_at(terms, loser).slope), lost, 0);
    const int64_t before = all.k < 0 ? ~all.k : all.k, after = next.k < 0 ? ~next.k : next.k;
    const int64_t k = all.R == all.R && (later || next.R != next.R) ? after : before;  // the first NaN goes before all
    both.k = all.k < 0 || next.k < 0 ? ~k : k;
    all = both;
}

template <class T>
TORCHASSAY_INLINE Slice joined_slices(const FinishJob& job, int64_t i) {
    const OptionJob& with_options = job;
    const double inverse = inverse_at<T>(with_options, i);
    Slice all = slice_of<T>(job.from, 0, i);
    for (int64_t part = 1; part < job.from.parts; ++part) join(all, slice_of<T>(job.from, part, i), job, inverse);
    return all;
}

}  // namespace
}  // namespace torchassay
