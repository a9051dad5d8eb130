// A call of the kernels for rows of logits: a request on standard input, the outputs on standard output.
#pragma once
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
        targets = targets_of_request(kept_);
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
    Options options() { return options_of_request(kept_); }

    // Calls scores(out, descending), or if a gradient is asked for grads(out, descending).
    template <class Scores, class Grads>
    void run(const Scores& scores, const Grads& grads) const {
        const int64_t size = rows.dtype == Dtype::kFloat32 ? 4 : 2;
        if (asked) return slots_in_both_orders(asked, rows.count(), stats_rows_, scores);
        in_both_orders({rows.count() * rows.classes * size},
                       [&](const std::vector<void*>& out, bool descending) { grads(out[0], descending); });
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
