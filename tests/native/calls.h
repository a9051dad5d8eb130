// Every native entry point of the CPU on fixed inputs, each large enough for several threads.
#pragma once
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "api.h"

namespace torchassay {

using Bytes = std::vector<char>;

struct Call {
    std::string name;
    std::function<void(int threads)> run;  // as often as one likes, with the same outputs
    std::vector<const Bytes*> outputs;
};

struct Shape {
    const char* name;
    Dtype dtype;
    int64_t outer, inner, classes;
    bool apart;  // classes stand apart in memory

    int64_t count() const { return outer * inner; }
    int64_t itemsize() const { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }
    bool wide() const { return dtype == Dtype::kFloat64; }
};

const Shape kShapes[] = {
    {"fp32 [4000, 10]", Dtype::kFloat32, 1, 4000, 10, false},
    {"bf16 [4000, 10]", Dtype::kBfloat16, 1, 4000, 10, false},
    {"fp32 [40, 1000]", Dtype::kFloat32, 1, 40, 1000, false},
    {"fp64 [40, 1000]", Dtype::kFloat64, 1, 40, 1000, false},
    {"bf16 [40, 1000]", Dtype::kBfloat16, 1, 40, 1000, false},
    {"fp16 [40, 1000]", Dtype::kFloat16, 1, 40, 1000, false},
    {"fp32 [2, 20000]", Dtype::kFloat32, 1, 2, 20000, false},
    {"fp32 [2, 20, 1000]", Dtype::kFloat32, 2, 1000, 20, true},
};

// Each buffer comes from the heap by itself, exactly as long as its numbers: a sanitizer sees what lies beyond.
class Calls {
public:
    std::vector<Call> list;

    Calls() {
        for (const Shape& shape : kShapes) {
            const Rows rows = rows_of(shape);
            const Targets targets = targets_of(shape);
            add_scores(shape, rows, targets);
            for (const char* name : {"smooth", "cap", "weights", "probabilities"})
                add_options(shape, name, rows, targets, options_of(shape, name));
            if (shape.apart) continue;
            add_states(shape, rows, targets);
            add_draws(shape, rows);
            add_heads(shape, rows);
        }
        add_numbers();
        add_windows();
        add_trees();
    }
    Calls(const Calls&) = delete;

private:
    std::deque<Bytes> memory_;
    std::vector<const Bytes*> written_;
    uint64_t state_ = 20;

    double uniform() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return double(state_ >> 11) * 0x1p-53;
    }
    void* room(int64_t bytes) {
        memory_.emplace_back(bytes);
        return memory_.back().data();
    }
    void* output(int64_t bytes) {
        void* const found = room(bytes);
        written_.push_back(&memory_.back());
        return found;
    }
    void add(const std::string& name, std::function<void(int)> run) {
        list.push_back({name, std::move(run), written_});
        written_.clear();
    }
    template <class T>
    T* numbers(int64_t count, double low, double high) {
        T* const found = static_cast<T*>(room(count * int64_t(sizeof(T))));
        for (int64_t i = 0; i < count; ++i) found[i] = T(low + (high - low) * uniform());
        return found;
    }
    void* reals(bool wide, int64_t count, double low, double high) {
        if (wide) return numbers<double>(count, low, high);
        return numbers<float>(count, low, high);
    }

    // 0.25 to 8 and their negatives: normal numbers in every dtype.
    const void* logits(const Shape& shape) {
        const int64_t count = shape.count() * shape.classes;
        char* const found = static_cast<char*>(room(count * shape.itemsize()));
        for (int64_t i = 0; i < count; ++i) {
            const double x = (0.25 + 7.75 * uniform()) * (uniform() < 0.5 ? -1 : 1);
            const float narrow = float(x);
            uint32_t bits;
            std::memcpy(&bits, &narrow, 4);
            const uint16_t bf16 = bits >> 16, fp16 = (bits >> 16 & 0x8000) | ((bits & 0x7fffffff) - 0x38000000) >> 13;
            const void* const from = shape.dtype == Dtype::kFloat64    ? static_cast<const void*>(&x)
                                     : shape.dtype == Dtype::kFloat32  ? static_cast<const void*>(&narrow)
                                     : shape.dtype == Dtype::kBfloat16 ? static_cast<const void*>(&bf16)
                                                                       : static_cast<const void*>(&fp16);
            std::memcpy(found + i * shape.itemsize(), from, shape.itemsize());
        }
        return found;
    }
    Rows rows_of(const Shape& shape) {
        Rows rows{logits(shape), shape.dtype, shape.outer, shape.inner, shape.classes, 0, shape.classes};
        if (shape.apart)
            rows.outer_stride = shape.inner * shape.classes, rows.inner_stride = 1, rows.class_stride = shape.inner;
        return rows;
    }
    Targets targets_of(const Shape& shape) {
        int64_t* const found = numbers<int64_t>(shape.count(), 0, double(shape.classes));
        found[1] = -100;
        return {found, true, -100};
    }
    Options options_of(const Shape& shape, const std::string& name) {
        Options options{nullptr, nullptr, {nullptr, 0.7}, 0, 0, 1e-4};
        if (name == "cap" || name == "weights") options.softcap = 6;
        if (name == "smooth" || name == "weights") options.label_smoothing = 0.1;
        if (name == "weights") options.weight = reals(shape.wide(), shape.classes, 0.5, 2);
        if (name == "weights") options.temperature.data = reals(shape.wide(), shape.count(), 0.5, 2);
        if (name == "probabilities")
            options.probabilities = reals(shape.wide(), shape.count() * shape.classes, 0, 2.0 / double(shape.classes));
        return options;
    }

    // Room for every signal, and for so many numbers a row that the backward needs.
    std::vector<void*> slots_of(const Shape& shape, int64_t stats) {
        std::vector<void*> out(kSlots);
        for (int i = 0; i < kSlots; ++i)
            out[i] = output(shape.count() * (i == kPrediction || shape.wide() ? 8 : 4) * (i == kStats ? stats : 1));
        return out;
    }
    Upstream upstream_of(const Shape& shape) { return {reals(shape.wide(), shape.count(), -1, 1), 1}; }

    void add_scores(const Shape& shape, const Rows& rows, const Targets& targets) {
        const auto out = slots_of(shape, 6);
        add(std::string("row_scores ") + shape.name,
            [=](int threads) { row_scores(rows, targets, out.data(), threads); });
        list.back().run(1);  // the numbers that the backward needs
        void* const grad = output(shape.count() * shape.classes * shape.itemsize());
        const Upstream loss = upstream_of(shape), entropy = upstream_of(shape);
        add(std::string("row_grads ") + shape.name,
            [=](int threads) { row_grads(rows, targets, out[kStats], loss, entropy, grad, threads); });
    }
    void add_options(const Shape& shape, const char* name, const Rows& rows, const Targets& targets,
                     const Options& options) {
        const auto out = slots_of(shape, 7);
        const std::string which = std::string(" ") + name + " " + shape.name;
        add("option_scores" + which, [=](int threads) { option_scores(rows, targets, options, out.data(), threads); });
        list.back().run(1);
        void* const grad = output(shape.count() * shape.classes * shape.itemsize());
        const Upstream loss = upstream_of(shape), entropy = upstream_of(shape);
        add("option_grads" + which,
            [=](int threads) { option_grads(rows, targets, options, out[kStats], loss, entropy, grad, threads); });
    }
    void add_states(const Shape& shape, const Rows& rows, const Targets& targets) {
        const bool smoothed = shape.itemsize() == 4;
        const int64_t count = shape.count(), half = shape.classes / 2;
        const int64_t bytes = (shape.wide() ? 8 : 4) * (smoothed ? kSmoothedNumbers : kStateNumbers) * count;
        Options options{nullptr, nullptr, {nullptr, 0.7}, smoothed ? 0.1 : 0.0, 0, 1e-4};
        char* const both = static_cast<char*>(output(2 * bytes));
        int64_t* const k = static_cast<int64_t*>(output(2 * count * 8));
        const auto state = [=](int64_t part) {
            return States{both + part * bytes, k + part * count, 1, count, shape.wide(), smoothed};
        };
        const auto slices = [=](int threads) {
            for (const int64_t part : {0, 1}) {
                Rows slice = rows;
                slice.data = static_cast<const char*>(rows.data) + part * half * shape.itemsize();
                slice.classes = part ? shape.classes - half : half;
                const Targets here{targets.data, true, -100, part * half, shape.classes};
                row_states(slice, here, options, state(part), threads);
            }
        };
        add(std::string("row_states ") + shape.name, slices);
        list.back().run(1);
        const States parts{both, k, 2, count, shape.wide(), smoothed};
        const States merged{output(bytes), static_cast<int64_t*>(output(8 * count)), 1, count, shape.wide(), smoothed};
        add(std::string("merge_states ") + shape.name,
            [=](int threads) { merge_states(parts, options, merged, threads); });
        const auto out = slots_of(shape, 7);
        const Targets all{targets.data, true, -100, 0, shape.classes};
        add(std::string("finish_states ") + shape.name,
            [=](int threads) { finish_states(parts, all, options, out.data(), threads); });
    }
    void add_draws(const Shape& shape, const Rows& rows) {
        const int64_t count = shape.count(), bytes = shape.wide() ? 8 : 4;
        for (const bool noisy : {true, false}) {
            Rows members = rows;
            Draws draws{2, 0, nullptr, {nullptr, 0.5}, {nullptr, 1.0}, nullptr, {nullptr, 7}};
            if (noisy)
                draws.top = reals(shape.wide(), count, 8, 8);
            else
                members.inner = count / 2, draws.stride = count / 2 * shape.classes;
            std::vector<void*> out(kDrawSlots);
            for (void*& each : out) each = output(members.count() * bytes);
            add(std::string(noisy ? "draw_scores noise " : "draw_scores ensemble ") + shape.name,
                [=](int threads) { draw_scores(members, draws, out.data(), threads); });
        }
    }
    void add_heads(const Shape& shape, const Rows& rows) {
        const char* const names[] = {"binary", "mse", "l1", "huber"};
        for (int head = 0; head < 4; ++head) {
            const void* const target = reals(shape.wide(), shape.count() * shape.classes, 0, 1);
            HeadTask task{rows, target, shape.classes, nullptr, Head(head), 1.0, {}};
            if (head == 0) task.pos_weight = reals(shape.wide(), shape.classes, 0.5, 2);
            for (const int slot : {kLoss, kEntropy, kGradNorm})
                if (head == 0 || slot != kEntropy) task.out[slot] = output(shape.count() * (shape.wide() ? 8 : 4));
            add(std::string("head_scores ") + names[head] + " " + shape.name,
                [=](int threads) { head_scores(task, threads); });
        }
    }
    void add_numbers() {
        const int64_t rows = 500, columns = 99;
        const int64_t* const row_id = numbers<int64_t>(rows, 0, 1e15);
        float* const picks = static_cast<float*>(output(rows * 4));
        add("uniforms [500]", [=](int) { uniforms(row_id, rows, {nullptr, 5}, 3, picks); });
        for (const bool even : {false, true}) {
            float* const out = static_cast<float*>(output(rows * columns * 4));
            add(even ? "normals uniform [500, 99]" : "normals [500, 99]",
                [=](int threads) { normals(row_id, rows, {nullptr, 5}, 1, 2, columns, even, out, threads); });
        }
    }
    void add_windows() {
        for (const int64_t count : {9, 40000}) {
            const int64_t capacity = 5000;
            const float* const window = numbers<float>(capacity, 0, 9);
            const float* const values = numbers<float>(count, -1, 10);
            const int64_t* const total = numbers<int64_t>(1, 12345, 12345);
            float* const out = static_cast<float*>(output(count * 4));
            add("cdf [" + std::to_string(count) + "]",
                [=](int threads) { cdf({window, capacity, total}, {values, 1, count}, true, out, threads); });
        }
        const int64_t count = 33000, capacity = 1024;
        float* const window = static_cast<float*>(output(capacity * 4));
        int64_t* const total = static_cast<int64_t*>(output(8));
        const float* const values = numbers<float>(count, 0, 9);
        float* const out = static_cast<float*>(output(count * 4));
        add("select_probability [33000]", [=](int threads) {
            *total = 0;
            const Selection how{nullptr, true, false, 2.0f, 0.1f};
            select_probability(window, capacity, total, {values, 1, count}, how, out, threads);
        });
    }
    SumTree tree(int64_t n) {
        double* const leaves = static_cast<double*>(output(n * 8));
        for (int64_t i = 0; i < n; ++i) leaves[i] = uniform();
        int64_t sums = 0, nodes = n;
        do {
            nodes = (nodes + 15) / 16;
            sums += (nodes + 15) / 16 * 16;
        } while (nodes > 16);
        return {leaves, static_cast<double*>(output(sums * 8)), n};
    }
    void add_trees() {
        const int64_t n = 600000, count = 20000;
        const SumTree built = tree(n);
        add("sum_tree_build [600000]", [=](int threads) { sum_tree_build(built, threads); });
        const SumTree changed = tree(n);
        sum_tree_build(changed, 1);
        const int64_t* const index = numbers<int64_t>(count, 0, double(n));
        const double* const weights = numbers<double>(count, 0, 2);
        add("sum_tree_update [20000]", [=](int) { sum_tree_update(changed, index, weights, count); });
        const SumTree drawn = tree(n);
        sum_tree_build(drawn, 1);
        int64_t* const out = static_cast<int64_t*>(output(count * 8));
        add("sum_tree_sample [20000]", [=](int threads) { sum_tree_sample(drawn, 11, 0, count, out, threads); });
    }
};

}  // namespace torchassay
