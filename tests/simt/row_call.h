// A call of the kernels for rows of logits: a request on standard input, the outputs on standard output.
//
// Threads and blocks are taken in ascending, then in descending order, which must give the same bits.
#pragma once
#include <memory>
#include <vector>

#include "request.h"
#include "row_memory.cuh"

namespace torchassay {

class RowCall {
public:
    int64_t asked, multiprocessors;  // asked: a bit for every slot, 0 for the gradient
    Rows rows{};
    Targets targets{};
    const void* stats = nullptr;
    Upstream up[2]{};

    explicit RowCall(int stats_rows) : stats_rows_(stats_rows) {
        asked = number(), multiprocessors = number();
        rows = rows_of_request(kept_);
        targets.wide = number(), targets.ignore_index = number(), targets.data = read();
        if (asked) return;
        stats = read();
        for (auto& g : up) g.stride = number(), g.data = read();
    }

    ~RowCall() {
        for (const Buffer* buffer : kept_) delete buffer;
    }
    RowCall(const RowCall&) = delete;
    RowCall& operator=(const RowCall&) = delete;

    void* read() { return Buffer::read(kept_); }

    // Calls scores(out, descending), or if a gradient is asked for grads(out, descending), once in each order.
    template <class Scores, class Grads>
    void run(const Scores& scores, const Grads& grads) const {
        const int64_t count = rows.count(), size = rows.dtype == Dtype::kFloat32 ? 4 : 2;
        std::vector<std::unique_ptr<Buffer>> outputs;
        for (int i = 0; i < kSlots; ++i) {
            const int64_t bytes = i == kStats ? 4 * stats_rows_ : i == kPrediction ? 8 : 4;
            if (asked >> i & 1) outputs.push_back(std::make_unique<Buffer>(count * bytes));
        }
        if (!asked) outputs.push_back(std::make_unique<Buffer>(count * rows.classes * size));
        std::vector<std::vector<char>> before;
        for (const bool descending : {false, true}) {
            void* out[kSlots] = {};
            size_t next = 0;
            for (int i = 0; i < kSlots; ++i)
                if (asked >> i & 1) out[i] = outputs[next++]->poisoned();
            if (asked)
                scores(out, descending);
            else
                grads(outputs[0]->poisoned(), descending);
            for (size_t i = 0; i < outputs.size(); ++i) {
                if (descending && !outputs[i]->holds(before[i]))
                    simt::fail("the order of the threads changed output %zu", i);
                if (!descending) before.push_back(outputs[i]->copy());
            }
        }
        for (const auto& output : outputs) output->write();
    }

private:
    int stats_rows_;
    std::vector<Buffer*> kept_;
};

// f(In{}) for the type of the logits.
template <class Function>
void by_dtype(Dtype dtype, const Function& f) {
    dtype == Dtype::kFloat32 ? f(float{}) : dtype == Dtype::kBfloat16 ? f(Bfloat16{}) : f(Float16{});
}

}  // namespace torchassay
