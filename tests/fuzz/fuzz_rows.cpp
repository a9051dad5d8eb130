// Rows of logits, plain, under options, and by slices of their classes.
#include "fuzz_native.h"
#include "rows_case.h"
#include "slice_stats.h"

using namespace torchassay;

namespace {

constexpr uint32_t kAllSlots = (1u << kSlots) - 1;

// What holds of the signals of a row whose logits are tame, under whatever options.
void look_at(const RowsCase& given, void* const* out, int64_t row, double eps) {
    const auto read = [&](Slot slot) { return given.read(out[slot], row); };
    const double most = std::log(double(given.rows.classes));
    if (out[kEntropy]) EXPECT(read(kEntropy) >= 0 && read(kEntropy) <= most * (1 + eps) + eps);
    if (out[kConfidence]) EXPECT(read(kConfidence) <= 1 && read(kConfidence) * given.rows.classes >= 1 - eps);
    if (out[kLeastConfidence]) EXPECT(read(kLeastConfidence) >= 0 && read(kLeastConfidence) <= 1);
    if (out[kGini]) EXPECT(read(kGini) >= 0 && read(kGini) <= 1 - (1 - eps) / double(given.rows.classes) + eps);
    if (out[kMargin]) EXPECT(read(kMargin) >= 0 && read(kMargin) <= 1);
}

// The prediction is the first of the largest logits.
void look_at_prediction(const RowsCase& given, const void* out, int64_t row) {
    const int64_t found = static_cast<const int64_t*>(out)[row];
    EXPECT(found >= 0 && found < given.rows.classes);
    for (int64_t j = 0; j < given.rows.classes; ++j)
        EXPECT(j < found ? given.at(row, j) < given.at(row, found) : given.at(row, j) <= given.at(row, found));
}

void grads(Input& input, const RowsCase& given, const Targets& targets, const Options* options, const void* stats,
           int threads) {
    const bool labelled = targets.data || (options && options->probabilities);
    const Upstream none{nullptr, 0};
    const bool by_loss = labelled && input.coin();
    const Upstream loss = by_loss ? some_upstream(input, given.wide, given.count) : none;
    const Upstream entropy = input.coin() ? some_upstream(input, given.wide, given.count) : none;
    if (!loss.data && !entropy.data) return;
    const int64_t size = element_size(given.rows.dtype);
    void* const out = input.room(given.count * given.rows.classes * size, size);
    if (options)
        option_grads(given.rows, targets, *options, stats, loss, entropy, out, threads);
    else
        row_grads(given.rows, targets, stats, loss, entropy, out, threads);
}

}  // namespace

void fuzz_rows(Input& input, int threads) {
    const RowsCase given = some_rows(input, some_classes(input), true);
    const bool labelled = input.integer(0, 3);
    const Targets targets = labelled ? some_targets(input, given.count, given.rows.classes, true) : Targets{};
    const uint32_t needs_target = 1u << kLoss | 1u << kGradNorm | 1u << kTargetMargin;
    void* out[kSlots];
    some_outputs(input, given.wide, given.count, 6, 1u << kStats, out);
    for (int slot = 0; slot < kSlots; ++slot)
        if (!labelled && (needs_target >> slot & 1)) out[slot] = nullptr;
    const int64_t bad = row_scores(given.rows, targets, out, threads);
    EXPECT(bad >= -1 && bad < given.count);
    if (bad >= 0) return;
    const double eps = 4e-6;
    for (int64_t i = 0; i < given.count; ++i) {
        if (!given.tame(i)) continue;
        look_at(given, out, i, eps);
        if (out[kPrediction]) look_at_prediction(given, out[kPrediction], i);
        if (out[kLoss]) EXPECT(given.read(out[kLoss], i) >= 0);
        if (out[kGradNorm]) EXPECT(given.read(out[kGradNorm], i) >= 0 && given.read(out[kGradNorm], i) < 1.41422);
        if (out[kTargetMargin]) EXPECT(std::fabs(given.read(out[kTargetMargin], i)) <= 1);
    }
    grads(input, given, targets, nullptr, out[kStats], threads);
}

void fuzz_options(Input& input, int threads) {
    const RowsCase given = some_rows(input, some_classes(input), true);
    const int64_t kind = input.integer(0, 3);  // none, probabilities, or labels
    const Targets targets = kind > 1 ? some_targets(input, given.count, given.rows.classes, true) : Targets{};
    const Options options = some_options(input, given, kind > 1, kind == 1);
    const uint32_t needs_target = 1u << kLoss | 1u << kGradNorm | 1u << kTargetMargin;
    void* out[kSlots];
    some_outputs(input, given.wide, given.count, 7, 1u << kStats, out);
    for (int slot = 0; slot < kSlots; ++slot)
        if ((!kind && (needs_target >> slot & 1)) || (kind == 1 && slot == kTargetMargin)) out[slot] = nullptr;
    const int64_t bad = option_scores(given.rows, targets, options, out, threads);
    EXPECT(bad >= -1 && bad < given.count);
    if (bad >= 0) return;
    for (int64_t i = 0; i < given.count; ++i) {
        if (!given.tame(i)) continue;
        look_at(given, out, i, 1e-5);
        if (out[kPrediction]) look_at_prediction(given, out[kPrediction], i);
        // masked classes have an infinite share of a spread target, and 0 times that is anybody's guess
        if (out[kLoss] && !options.weight && kind > 1) EXPECT(!(given.read(out[kLoss], i) < 0));
    }
    grads(input, given, targets, &options, out[kStats], threads);
}

void fuzz_states(Input& input, int threads) {
    const int64_t parts = input.integer(1, 4);
    std::vector<RowsCase> slices;
    int64_t total = 0;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t classes = parts > 1 ? input.integer(1, 600) : some_classes(input);
        slices.push_back(some_rows(input, classes, true));
        total += classes;
    }
    // all slices have as many rows, of one dtype: those of the first
    Rows first = slices[0].rows;
    const int64_t count = first.count();
    const bool wide = slices[0].wide;
    total = 0;
    for (RowsCase& slice : slices) {
        const int64_t classes = slice.rows.classes;
        if (&slice != &slices[0]) {
            slice.rows = {logits(input, first.dtype, count * classes), first.dtype, 1, count, classes, 0, classes};
            slice.count = count, slice.wide = wide;
        }
        total += classes;
    }
    const bool labelled = input.integer(0, 3);
    Targets targets = labelled ? some_targets(input, count, total, false) : Targets{};
    Options options = some_options(input, slices[0], labelled, false);
    const bool smoothed = options.label_smoothing > 0;
    const void* const weight = options.weight;
    const int64_t numbers = smoothed ? kSmoothedNumbers : kStateNumbers, each = wide ? 8 : 4;
    char* const states = static_cast<char*>(input.room(parts * numbers * count * each, each));
    int64_t* const k = input.room<int64_t>(parts * count);
    targets.total = total;
    for (int64_t part = 0; part < parts; ++part) {
        options.weight = weight ? input.numbers(wide, slices[part].rows.classes, [] { return 0.5; }) : nullptr;
        const States to{states + part * numbers * count * each, k + part * count, 1, count, wide, smoothed};
        row_states(slices[part].rows, targets, options, to, threads);
        targets.first += slices[part].rows.classes;
    }
    targets.first = 0;
    options.weight = weight ? input.numbers(wide, count, [] { return 0.5; }) : nullptr;
    const States all{states, k, parts, count, wide, smoothed};
    const States merged{input.room(numbers * count * each, each), input.room<int64_t>(count), 1, count, wide, smoothed};
    merge_states(all, options, merged, threads);
    const uint32_t needs_target = 1u << kLoss | 1u << kGradNorm | 1u << kTargetMargin;
    for (const States& from : {all, merged}) {
        void* out[kSlots];
        some_outputs(input, wide, count, 7, kAllSlots, out);
        for (int slot = 0; slot < kSlots; ++slot)
            if (!labelled && (needs_target >> slot & 1)) out[slot] = nullptr;
        const int64_t bad = finish_states(from, targets, options, out, threads);
        EXPECT(bad >= -1 && bad < count);
        for (int64_t i = 0; i < count && bad < 0; ++i) {
            bool tame = true;
            for (const RowsCase& slice : slices) tame &= slice.tame(i);
            if (!tame) continue;
            RowsCase whole = slices[0];
            whole.rows.classes = total;
            look_at(whole, out, i, 1e-5);
            const int64_t prediction = static_cast<const int64_t*>(out[kPrediction])[i];
            EXPECT(prediction >= 0 && prediction < total);
        }
    }
}
