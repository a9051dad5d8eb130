// Rows, targets and options as python/torchassay/ops lays them out.
#pragma once
#include "input.h"

namespace torchassay {

struct RowsCase {
    Rows rows;
    bool wide;  // float64
    int64_t count;

    double at(int64_t row, int64_t column) const {
        const int64_t place = row / rows.inner * rows.outer_stride + row % rows.inner * rows.inner_stride;
        return widened(rows.data, rows.dtype, place + column * rows.class_stride);
    }
    // No NaN, no +inf, and a class that is not at -inf.
    bool tame(int64_t row) const {
        bool alive = false;
        for (int64_t j = 0; j < rows.classes; ++j) {
            const double x = at(row, j);
            if (!(x < INFINITY)) return false;
            alive |= x > -INFINITY;
        }
        return alive;
    }
    // Of a float output of `count` numbers.
    double read(const void* out, int64_t i) const {
        return wide ? static_cast<const double*>(out)[i] : static_cast<const float*>(out)[i];
    }
};

inline int64_t some_classes(Input& input) {
    switch (input.integer(0, 15)) {
        case 0:
            return input.integer(250, 262);  // where rows in lanes end
        case 1:
            return input.integer(8180, 8200);  // where a segment ends
        case 2:
            return input.integer(1, 20000);
        case 3:
            return input.integer(500, 520);
        default:
            return input.integer(1, 80);
    }
}

inline RowsCase some_rows(Input& input, int64_t classes, bool apart_too) {
    const Dtype dtype = Dtype(input.integer(0, 3));
    Rows rows{nullptr, dtype, input.integer(1, 3), 1, classes, 0, 0};
    const bool apart = apart_too && classes > 1 && classes <= 4096 && input.integer(0, 3) == 0;
    const int64_t room = input.integer(0, 31) ? 3000 : 60000;  // more are for threads
    const int64_t most = room / (rows.outer * classes) + 1;
    if (apart) {
        rows.inner = 16 + input.integer(0, most < 180 ? most : 180);
        rows.inner_stride = 1;
        rows.class_stride = input.integer(0, 15) ? rows.inner + input.integer(0, 3) : 0;
        rows.outer_stride = rows.class_stride * (classes - 1) + rows.inner + input.integer(0, 3);
    } else {
        rows.inner = input.integer(1, most < 70 ? most : 70);
        rows.inner_stride = input.integer(0, 7) ? classes + input.integer(0, 3) : input.integer(0, 2);
        rows.outer_stride = rows.inner_stride * (rows.inner - 1) + classes + input.integer(0, 3);
    }
    if (rows.outer > 1 && input.integer(0, 15) == 0) rows.outer_stride = 0;
    const int64_t extent = (rows.outer - 1) * rows.outer_stride + (rows.inner - 1) * rows.inner_stride +
                           (classes - 1) * rows.class_stride + 1;
    rows.data = logits(input, dtype, extent);
    return {rows, dtype == Dtype::kFloat64, rows.count()};
}

// A class of each row, ignored ones among them, and now and then what is no class.
inline Targets some_targets(Input& input, int64_t count, int64_t classes, bool wrong_too) {
    const int64_t ignore = input.integer(0, 3) ? -100 : input.integer(-2, classes + 1);
    Targets targets{nullptr, input.coin(), ignore};
    const bool wrong = wrong_too && input.integer(0, 7) == 0;
    const auto make = [&]() -> int64_t {
        const uint8_t code = input.byte();
        if (code < 16) return ignore;
        if (wrong && code < 24) return targets.wide ? input.raw<int64_t>() : input.raw<int32_t>();
        return input.integer(0, classes - 1);
    };
    targets.data = targets.wide ? static_cast<void*>(input.array<int64_t>(count, make))
                                : static_cast<void*>(input.array<int32_t>(count, make));
    return targets;
}

inline Number some_number(Input& input, bool wide, int64_t count) {
    const auto make = [&] { return input.positive(); };
    if (input.coin()) return {nullptr, input.coin() ? 1.0 : make()};
    return {input.numbers(wide, count, make), 1.0};
}

// Without a target the caller gives none of what needs one; `probabilities` stand in the place of labels.
inline Options some_options(Input& input, const RowsCase& given, bool target, bool probabilities) {
    Options options{nullptr, nullptr, some_number(input, given.wide, given.count), 0, 0, 0};
    const auto share = [&] { return input.integer(0, 255) / 128.0; };
    if (target || probabilities) {
        if (input.coin()) options.weight = input.numbers(given.wide, given.rows.classes, share);
        if (input.coin()) options.label_smoothing = input.integer(1, 64) / 64.0;
        if (input.coin()) options.z_loss = input.positive() / 100;
    }
    if (probabilities) options.probabilities = input.numbers(given.wide, given.count * given.rows.classes, share);
    if (input.coin()) options.softcap = input.positive();
    return options;
}

// Room for outputs, those that the input asks for and those in `always`; `out` has kSlots places.
inline void some_outputs(Input& input, bool wide, int64_t count, int64_t stats, uint32_t always, void** out) {
    const uint32_t asked = input.raw<uint16_t>() | always;
    for (int slot = 0; slot < kSlots; ++slot) {
        out[slot] = nullptr;
        if (!(asked >> slot & 1)) continue;
        const int64_t each = slot == kPrediction || wide ? 8 : 4, numbers = slot == kStats ? stats * count : count;
        out[slot] = input.room(each * numbers, each);
    }
}

inline Upstream some_upstream(Input& input, bool wide, int64_t count) {
    const int64_t stride = input.integer(0, 2);
    return {input.numbers(wide, stride * (count - 1) + 1, [&] { return input.real(); }), stride};
}

}  // namespace torchassay
