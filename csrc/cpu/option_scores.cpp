// Scores under options that need no sum over the classes beyond the plain ones, and for evenly smoothed labels, whose
// one sum more is taken along: the walks of plain rows, with differences over the temperature, of capped logits where
// they are capped.
#include "option_finish.h"

namespace torchassay {
namespace {

// The norm of the gradient by logits that are capped: `label_norm` with the slopes of the top and of the label, and S
// in the place of Q. The label is the top where its logit is: far beyond the cap others have the same capped value, but
// not the slope.
template <class T, class Mask>
TORCHASSAY_INLINE V<T> capped_norm(const Finished<V<T>>& f, const RowSums<V<T>>& s, const Labelled<V<T>>& l,
                                   V<T> weight, V<T> extra, V<T> slope_m, V<T> slope_y, Mask top) {
    const V<T> beta = weight + extra, steep = f.z * f.z, zero{};
    const V<T> S = s.u == f.m ? s.S - slope_m * slope_m : s.S;  // of a tie one is the top
    const V<T> left = slope_m * slope_m + (steep * S - l.e_y * l.e_y * slope_y * slope_y);
    const V<T> others = top ? f.z * square_root(S) : square_root(left < 0 ? zero : left);
    return hypotenuse(slope_y * (extra - beta * l.miss), beta * others * f.c);
}

// Rows whose labels are looked up; t is the part of the target that is spread over all classes, its gap in units of the
// logits.
template <class T>
TORCHASSAY_INLINE void finish_target(OptionJob& job, int64_t i, int count, RowSums<V<T>> state, OwnLabels<T> own,
                                     LinearTarget<V<T>> t) {
    const V<T> infinity = splat<V<T>>(INFINITY), zero{};
    const Inverse<V<T>> inverse = inverse_of<T>(job, i, count);
    V<T> slope[3];  // of the top, the second and the label
    const auto top = own.x_y == state.m;
    if (job.capped()) {
        const V<T> x[3] = {state.m, state.u, own.x_y};
        V<T> v[3];
        softcap_of<T>(job)(x, v, slope);
        state.m = v[0], state.u = v[1], own.x_y = v[2];
    }
    const Finished<V<T>> f = finish(state, inverse, infinity);
    const auto [mu, margin] = write_unlabelled<T>(job, i, count, f, state);
    V<T> rest{}, beta{};
    if (job.targets.data) {
        const Labelled<V<T>> l = label(f, own.x_y, inverse, infinity);
        t.gap *= inverse.high;
        t = add_label(t, f, l, own.weight);
        const V<T> z_loss = splat<V<T>>(T(job.options.z_loss)), extra = (z_loss + z_loss) * f.lse;
        const LinearLoss<V<T>> loss = linear_loss(f, t, z_loss);
        rest = own.counted ? loss.rest : zero;
        beta = own.counted ? loss.beta : zero;
        if (job.wants(kLoss)) write<T>(job.out[kLoss], i, count, own.counted ? loss.loss : zero);
        if (job.wants(kGradNorm)) {
            V<T> norm;
            if (job.swept())
                norm = splat<V<T>>(T(NAN));
            else if (job.capped())
                norm = capped_norm<T>(f, state, l, own.weight, extra, slope[0], slope[2], top);
            else if (job.smoothed())
                norm = smoothed_norm(f, state, l, splat<V<T>>(T(job.options.label_smoothing)),
                                     splat<V<T>>(T(job.rows.classes)), extra);
            else if (job.options.z_loss == 0)
                norm = own.weight * grad_norm_of(f, state, l);
            else
                norm = label_norm(f, state, l, own.weight, extra);
            write<T>(job.out[kGradNorm], i, count, own.counted ? inverse.high * norm : zero);
        }
        if (job.wants(kTargetMargin))
            write<T>(job.out[kTargetMargin], i, count, own.counted ? target_margin_of(f, l, margin) : zero);
    }
    if (job.wants(kStats)) write_stats<T>(job, i, count, f, state.u, mu, rest, beta);
}

template <class T, class LogitOf>
TORCHASSAY_INLINE void finish_rows(OptionJob& job, const LogitOf& logit_of, int64_t i, int count,
                                   const RowSums<V<T>>& sums) {
    OwnLabels<T> own;
    if (job.targets.data) own = look_up_labels<T>(job, logit_of, i, count);
    LinearTarget<V<T>> t{};
    if (job.smoothed()) {
        const double classes = double(job.rows.classes), share = job.options.label_smoothing / classes;
        t = {splat<V<T>>(T(share * (classes - 1))), sums.A * T(share), splat<V<T>>(T(share))};
    }
    finish_target<T>(job, i, count, sums, own, t);
}

}  // namespace
}  // namespace torchassay
// after finish_rows, which it calls
#include "row_walks.h"
#include "slices.h"

namespace torchassay {
namespace {

// Rows from the states of their slices.
template <class T>
void finish_states(FinishJob& job, int64_t begin, int64_t end) {
    constexpr int n = Simd<T>::kLanes;
    for (int64_t i = begin; i < end; i += n) {
        const int count = int(end - i < n ? end - i : n);
        T lanes[kSmoothedNumbers][n] = {};
        bool here[n] = {};
        for (int lane = 0; lane < count; ++lane) {
            const Slice s = joined_slices<T>(job, i + lane);
            const double numbers[kSmoothedNumbers] = {s.m, s.u, s.R, s.T, s.Q, s.S, s.x_y, s.rest, s.gap, s.top};
            for (int q = 0; q < kSmoothedNumbers; ++q) lanes[q][lane] = T(numbers[q]);
            here[lane] = s.k < 0;
            if (auto* prediction = static_cast<int64_t*>(job.out[kPrediction])) prediction[i + lane] = class_of(s.k);
        }
        OwnLabels<T> own;
        if (job.targets.data) {
            const auto logit = [&](int lane, int64_t) { return here[lane] ? lanes[6][lane] : T(NAN); };
            look_up<T>(job, logit, i, count, &own.x_y, &own.counted);
            T weight[n] = {};
            for (int lane = 0; lane < count; ++lane) {
                const T* given = static_cast<const T*>(job.options.weight);
                weight[lane] =
                    here[lane] ? T(1 - job.options.label_smoothing) * (given ? given[i + lane] : T(1)) : T(NAN);
            }
            own.weight = load<T>(weight);
        }
        V<T> x[kSmoothedNumbers];
        for (int q = 0; q < kSmoothedNumbers; ++q) x[q] = load<T>(lanes[q]);
        if (job.capped()) {  // finish_target leaves the top out of S at a tie
            const V<T> tops[2] = {x[0], x[1]};
            V<T> v[2], slope[2];
            softcap_of<T>(job)(tops, v, slope);
            x[5] += v[0] == v[1] ? slope[0] * slope[0] : V<T>{};
        }
        const RowSums<V<T>> state{{x[0], x[1], x[2], x[3], x[4]}, V<T>{}, x[5]};
        finish_target<T>(job, i, count, state, own, {x[7], x[8], x[9]});
    }
}

}  // namespace
}  // namespace torchassay

namespace torchassay {
namespace TORCHASSAY_ISA {
void option_rows_any(OptionJob& job, int64_t begin, int64_t end, void* scratch) {
    TORCHASSAY_BY_DTYPE(score_rows, begin, end, scratch)
}
void option_segment_any(const OptionJob& job, int64_t row, int64_t segment, Segment* out) {
    TORCHASSAY_BY_DTYPE(score_segment, row, segment, out)
}
void option_states_any(OptionJob& job, int64_t begin, int64_t end, const Segment* states) {
    TORCHASSAY_BY_DTYPE(score_states, begin, end, states)
}
void finish_states_any(FinishJob& job, int64_t begin, int64_t end) {
    if (job.from.wide)
        finish_states<double>(job, begin, end);
    else
        finish_states<float>(job, begin, end);
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
