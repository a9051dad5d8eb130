// What does not read rows of classes alone: draws, other heads, windows, trees, random numbers.
#include "fuzz_native.h"
#include "rows_case.h"

using namespace torchassay;

void fuzz_draws(Input& input, int threads) {
    const int64_t draws = input.integer(1, 5);
    RowsCase given = some_rows(input, input.integer(0, 7) ? input.integer(1, 300) : input.integer(1, 9000), false);
    const int64_t count = given.count;
    Draws how{draws, 0, nullptr, {nullptr, 0}, {nullptr, 1}, nullptr, {nullptr, input.raw<int64_t>()}};
    if (input.coin()) {  // an ensemble: members one after the other
        const Rows& r = given.rows;
        const int64_t extent = (r.outer - 1) * r.outer_stride + (r.inner - 1) * r.inner_stride + r.classes;
        how.stride = extent + input.integer(0, 3);
        given.rows.data = logits(input, r.dtype, (draws - 1) * how.stride + extent);
    } else {
        std::vector<double> top(count, -INFINITY);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t j = 0; j < given.rows.classes; ++j) top[i] = std::fmax(top[i], given.at(i, j));
        int64_t next = 0;
        how.top = input.numbers(given.wide, count, [&] { return top[next++]; });
        how.std = some_number(input, given.wide, count);
        how.scale = some_number(input, given.wide, count);
        if (input.coin()) how.row_id = input.array<int64_t>(count, [&] { return input.raw<int64_t>(); });
        if (input.coin()) how.seed.data = input.array<int64_t>(1, [&] { return input.raw<int64_t>(); });
    }
    void* out[kDrawSlots];
    for (void*& slot : out)
        slot = input.coin() ? input.room(count * (given.wide ? 8 : 4), given.wide ? 8 : 4) : nullptr;
    draw_scores(given.rows, how, out, threads);
    const double most = std::log(double(given.rows.classes)) * (1 + 1e-5) + 1e-5;
    for (int64_t i = 0; i < count; ++i)
        for (void* slot : out)
            if (slot) EXPECT(!(given.read(slot, i) < 0) && !(given.read(slot, i) > most));
}

void fuzz_heads(Input& input, int threads) {
    const int64_t count = input.integer(1, 60), outputs = input.integer(0, 7) ? input.integer(1, 70) : 900;
    const Dtype dtype = Dtype(input.integer(0, 3));
    const bool wide = dtype == Dtype::kFloat64;
    const int64_t stride = input.integer(0, 7) ? outputs + input.integer(0, 3) : 0;
    HeadTask task{{logits(input, dtype, stride * (count - 1) + outputs), dtype, 1, count, outputs, 0, stride},
                  nullptr,
                  input.integer(0, 7) ? outputs + input.integer(0, 3) : 0,
                  nullptr,
                  Head(input.integer(0, 3)),
                  input.positive(),
                  {}};
    const bool binary = task.head == Head::kBinary;
    task.target = input.numbers(wide, task.target_stride * (count - 1) + outputs,
                                [&] { return binary ? input.integer(0, 8) / 8.0 : input.real(); });
    if (binary && input.coin()) task.pos_weight = input.numbers(wide, outputs, [&] { return input.positive(); });
    for (int slot = 0; slot <= kGradNorm; ++slot)
        if (input.coin() && (binary || slot != kEntropy))
            task.out[slot] = input.room(count * (wide ? 8 : 4), wide ? 8 : 4);
    head_scores(task, threads);
    const RowsCase given{task.rows, wide, count};
    for (int64_t i = 0; i < count; ++i)
        for (void* slot : task.out)
            if (slot) EXPECT(!(given.read(slot, i) < 0));
}

void fuzz_window(Input& input, int threads) {
    const int64_t capacity = input.integer(1, input.coin() ? 6000 : 40), count = input.integer(1, 200);
    // in a window there is no NaN; total may say anything that a window was told of, and how it begins
    float* const window = input.array<float>(capacity, [&] {
        const double value = input.real();
        return value != value ? 1.0 : value;
    });
    int64_t* const total =
        input.array<int64_t>(1, [&] { return input.coin() ? input.integer(0, 40) : input.raw<uint32_t>(); });
    const bool midrank = input.coin();
    const int64_t stride = input.integer(0, 2);
    const float* const spread = input.array<float>(stride * (count - 1) + 1, [&] { return input.real(); });
    float* const out = input.room<float>(count);
    cdf({window, capacity, total}, {spread, stride, count}, midrank, out, threads);
    for (int64_t i = 0; i < count; ++i) {
        const float value = spread[i * stride];
        EXPECT(value != value ? out[i] != out[i] : out[i] >= 0 && out[i] <= 1);
    }
    const float* const values = input.array<float>(count, [&] { return input.real(); });
    Selection how{nullptr, input.coin(), midrank, float(input.integer(0, 6)) / 2, float(input.integer(0, 4)) / 4};
    if (input.coin()) how.mask = input.array<uint8_t>(count, [&] { return input.coin(); });
    const int64_t before = *total;
    select_probability(window, capacity, total, {values, 1, count}, how, out, threads);
    EXPECT(*total >= before && *total <= before + (how.update ? count : 0));
    for (int64_t i = 0; i < count; ++i) EXPECT(out[i] >= 0 && out[i] <= 1);
}

void fuzz_sum_tree(Input& input, int threads) {
    const int64_t n = input.integer(1, input.coin() ? 20000 : 600);
    const bool weights = input.integer(0, 7);  // and else anything
    const auto make = [&] {
        const double value = input.real();
        return weights && !(value >= 0 && value <= 1e300) ? 0.0 : value;
    };
    double* const leaves = input.array<double>(n, make);
    int64_t sums = 0, nodes = n;
    do {
        nodes = (nodes + 15) / 16;
        sums += (nodes + 15) / 16 * 16;
    } while (nodes > 16);
    const SumTree tree{leaves, input.room<double>(sums), n};
    const SumTreeBuilt built = sum_tree_build(tree, threads);
    int64_t wrong = -1, positive = 0;
    for (int64_t i = n - 1; i >= 0; --i) {
        if (!(leaves[i] >= 0 && leaves[i] < INFINITY)) wrong = i;
        positive += leaves[i] > 0;
    }
    EXPECT(built.wrong == wrong && built.positive == positive);
    if (wrong >= 0) return;
    const int64_t count = input.integer(0, 700);
    const int64_t* const index = input.array<int64_t>(count, [&] { return input.integer(0, n - 1); });
    const double* const values =
        input.array<double>(count, [&] { return std::fmin(std::fabs(input.positive()), 1e4); });
    positive += sum_tree_update(tree, index, values, count);
    for (int64_t i = 0; i < n; ++i) positive -= leaves[i] > 0;
    EXPECT(positive == 0);
    double whole = 0;
    for (int64_t i = sums - 16; i < sums; ++i) whole += tree.sums[i];
    if (!(whole > 0 && whole < INFINITY)) return;
    const int64_t draws = input.integer(1, 300);
    int64_t* const out = input.room<int64_t>(draws);
    sum_tree_sample(tree, input.raw<uint64_t>(), input.raw<uint32_t>(), draws, out, threads);
    for (int64_t i = 0; i < draws; ++i) EXPECT(out[i] >= 0 && out[i] < n && leaves[out[i]] > 0);
}

void fuzz_random(Input& input, int threads) {
    const int64_t rows = input.integer(1, 40), columns = input.integer(1, 300);
    const int64_t* const row_id = input.array<int64_t>(rows, [&] { return input.raw<int64_t>(); });
    const Seed seed{nullptr, input.raw<int64_t>()};
    const bool uniform = input.coin();
    float* const out = input.room<float>(rows * columns);
    normals(row_id, rows, seed, int(input.integer(0, 3)), input.raw<uint32_t>(), columns, uniform, out, threads);
    for (int64_t i = 0; i < rows * columns; ++i)
        EXPECT(uniform ? out[i] >= 0 && out[i] < 1 : std::isfinite(out[i]) && std::fabs(out[i]) < 10);
    uniforms(row_id, rows, seed, input.raw<uint32_t>(), out);
    for (int64_t i = 0; i < rows; ++i) EXPECT(out[i] >= 0 && out[i] < 1);
}
