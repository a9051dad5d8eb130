// Rows from the states of slices of their classes, which join in double whatever they are kept in.
#pragma once
#include <math.h>

#include "row_sums.h"
// after the operations it is made of
#include "../slice_stats.h"

namespace torchassay {
namespace {

using Slice = SliceState<double>;

struct CappedNumber {
    double v, slope;
};
TORCHASSAY_INLINE CappedNumber capped_at(const OptionTerms& terms, double x) {
    if (!terms.capped()) return {x, 1};
    if (x - x != 0) return {x, 0};
    const double y = x / terms.options.softcap, e = ::exp(-2 * ::fabs(y));
    return {terms.options.softcap * ::tanh(y), 4 * e / ((1 + e) * (1 + e))};  // 1 - tanh^2 would cancel
}

// Slice `part` of row i.
template <class T>
TORCHASSAY_INLINE Slice slice_of(const States& states, int64_t part, int64_t i) {
    const int64_t count = states.count, numbers = states.smoothed ? kSmoothedNumbers : kStateNumbers;
    const T* at = static_cast<const T*>(states.numbers) + part * numbers * count + i;
    double x[kSmoothedNumbers] = {};
    for (int64_t q = 0; q < numbers; ++q) x[q] = double(at[q * count]);
    return {x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9], states.k[part * count + i]};
}

template <class T>
TORCHASSAY_INLINE Slice joined_slices(const FinishJob& job, int64_t i) {
    const Inverse<double> inverse{inverse_at<T>(static_cast<const OptionJob&>(job), i), 0};
    const auto cap = [&](double x) { return capped_at(job, x); };
    Slice all = slice_of<T>(job.from, 0, i);
    for (int64_t part = 1; part < job.from.parts; ++part)
        all = merge(all, slice_of<T>(job.from, part, i), inverse, cap, double(INFINITY));
    return all;
}

}  // namespace
}  // namespace torchassay
