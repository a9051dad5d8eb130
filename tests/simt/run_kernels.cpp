// Runs one call of the CUDA kernels under the host shim: a request on standard input, the outputs on standard output.
//
// Threads and blocks are taken in ascending, then in descending order, which must give the same bits.
#include <vector>

#include "request.h"
#include "row_grads.cuh"
#include "row_scores.cuh"

using namespace torchassay;

namespace {

template <class In>
void scores(const Rows& rows, const Targets& targets, void* const out[kSlots], int multiprocessors, bool descending) {
    const bool cut = cut_into_spans(rows, multiprocessors);
    Buffer states(cut ? rows.count() * spans_of<In>(rows) * kThreads * int64_t(sizeof(Words)) : 16);
    score_rows<In>(rows, targets, out, states.poisoned(), multiprocessors, simt::Launch{descending});
}

template <class In>
void grads(const Rows& rows, const Targets& targets, const void* stats, const Upstream (&up)[2], void* out,
           bool descending) {
    grad_rows<In>(rows, targets, stats, up[0], up[1], out, simt::Launch{descending});
}

#define BY_DTYPE(function, ...)                                                        \
    (rows.dtype == Dtype::kFloat32    ? function<float>(rows, targets, __VA_ARGS__)    \
     : rows.dtype == Dtype::kBfloat16 ? function<Bfloat16>(rows, targets, __VA_ARGS__) \
                                      : function<Float16>(rows, targets, __VA_ARGS__))

}  // namespace

int main() {
    std::vector<Buffer*> kept;
    const int64_t asked = number(), multiprocessors = number();  // asked: a bit for every slot, 0 for the gradient
    const Rows rows = rows_of_request(kept);
    Targets targets{};
    targets.wide = number(), targets.ignore_index = number(), targets.data = Buffer::read(kept);

    const int64_t count = rows.count();
    std::vector<Buffer*> outputs;
    if (asked) {
        for (int i = 0; i < kSlots; ++i)
            if (asked >> i & 1) outputs.push_back(new Buffer(count * (i == kStats ? 24 : i == kPrediction ? 8 : 4)));
    } else {
        outputs.push_back(new Buffer(count * rows.classes * (rows.dtype == Dtype::kFloat32 ? 4 : 2)));
    }
    const void* stats = nullptr;
    Upstream up[2]{};
    if (!asked) {
        stats = Buffer::read(kept);
        for (auto& g : up) g.stride = number(), g.data = Buffer::read(kept);
    }

    std::vector<std::vector<char>> before;
    for (const bool descending : {false, true}) {
        void* out[kSlots] = {};
        size_t next = 0;
        for (int i = 0; i < kSlots; ++i)
            if (asked >> i & 1) out[i] = outputs[next++]->poisoned();
        if (asked)
            BY_DTYPE(scores, out, int(multiprocessors), descending);
        else
            BY_DTYPE(grads, stats, up, outputs[0]->poisoned(), descending);
        for (size_t i = 0; i < outputs.size(); ++i) {
            if (descending && !outputs[i]->holds(before[i]))
                simt::fail("the order of the threads changed output %zu", i);
            if (!descending) before.push_back(outputs[i]->copy());
        }
    }
    for (const Buffer* output : outputs) output->write(), delete output;
    for (const Buffer* buffer : kept) delete buffer;
}
