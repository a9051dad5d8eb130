// The algebra of heads that are no softmax over classes, one source of truth for host and device: what one output, a
// label's logit or a dimension's value, adds to the signals of its sample.
//
// F is a number (device float) or a vector of numbers. Include this after its operations: absolute, square_root and
// select(condition, yes, no).
#pragma once
#include "api.h"
#include "host_device.h"

namespace torchassay {

template <class F>
struct HeadTerms {
    F loss, entropy;
    F slope;  // of the loss by the output, of any sign
};

// |x|, NaN for an infinite logit: so is everything that is made of it.
template <class F>
TORCHASSAY_HD F magnitude(F x) {
    return absolute(x) + (x - x);
}

// A logit x with target y, whose positive part counts w times: F.binary_cross_entropy_with_logits. The caller has
// a = magnitude(x), e = e^-a, c = 1 / (1 + e) and log1p(e). The likelier side has probability c, the other e c, their
// losses are log1p(e) and a + log1p(e): for y = 0 and y = 1 nothing is subtracted, for any y nothing but in the slope.
template <class F>
TORCHASSAY_HD HeadTerms<F> binary_terms(F x, F y, F w, F a, F e, F c, F log1p_e) {
    const F on = y * w, off = F{} + 1 - y;
    const auto positive = x > F{};
    const F rest = e * c;
    const F slope = off * select(positive, c, rest) - on * select(positive, rest, c);
    return {(off + on) * log1p_e + select(positive, off, on) * a, log1p_e + a * rest, slope};
}

// An output x with target y; `head` is known when this is compiled.
template <class F>
TORCHASSAY_HD HeadTerms<F> regression_terms(Head head, F x, F y, F delta) {
    const F d = x - y, a = absolute(d);
    if (head == Head::kMse) return {d * d, F{}, a + a};
    if (head == Head::kL1) return {a, F{}, select(a > F{}, F{} + 1, a)};
    const F inner = select(a > delta, delta, a);  // NaN passes
    return {inner * (a - inner * 0.5f), F{}, inner};
}

// The sums of a sample. A slope's square may underflow or overflow where the slope does not, so the squares are summed
// three times, of slopes times 2^k, as they are, and times 2^-k. Without a branch, and in one pass.
template <class F>
struct HeadSums {
    F loss{}, entropy{}, low{}, middle{}, high{};
};

template <class T>
struct SquareScale;
template <>
struct SquareScale<float> {
    static constexpr float kUp = 0x1p80f, kDown = 0x1p-80f;
    static constexpr float kSmall = 0x1p-80f, kLarge = 0x1p120f;  // between them the middle sum has lost nothing
};
template <>
struct SquareScale<double> {
    static constexpr double kUp = 0x1p600, kDown = 0x1p-600;
    static constexpr double kSmall = 0x1p-700, kLarge = 0x1p1000;
};

// T is the type of one number in F.
template <class T, class F>
TORCHASSAY_HD void add(HeadSums<F>& sums, const HeadTerms<F>& terms) {
    sums.loss += terms.loss;
    sums.entropy += terms.entropy;
    const F up = terms.slope * SquareScale<T>::kUp, down = terms.slope * SquareScale<T>::kDown;
    sums.low = fused(up, up, sums.low);
    sums.middle = fused(terms.slope, terms.slope, sums.middle);
    sums.high = fused(down, down, sums.high);
}

template <class T, class F>
TORCHASSAY_HD F grad_norm_of(const HeadSums<F>& sums) {
    using Scale = SquareScale<T>;
    const auto small = sums.middle < Scale::kSmall, usual = sums.middle < Scale::kLarge;
    const F one = F{} + 1;
    const F scale = select(small, one * Scale::kDown, select(usual, one, one * Scale::kUp));
    return square_root(select(small, sums.low, select(usual, sums.middle, sums.high))) * scale;
}

}  // namespace torchassay
