// Runs one call of the CUDA kernels for rows of logits under the host shim: row_call.h.
#include "row_call.h"
#include "row_grads.cuh"
#include "row_scores.cuh"

using namespace torchassay;

namespace {

template <class In>
void scores(const RowCall& call, void* const (&out)[kSlots], bool descending) {
    const bool cut = cut_into_spans(call.rows, int(call.multiprocessors));
    Buffer states(cut ? call.rows.count() * spans_of<In>(call.rows) * kThreads * int64_t(sizeof(Words)) : 16);
    score_rows<In>(call.rows, call.targets, out, states.poisoned(), int(call.multiprocessors),
                   simt::Launch{descending});
}

}  // namespace

int main() {
    const RowCall call(6);
    by_dtype(call.rows.dtype, [&](auto one) {
        using In = decltype(one);
        call.run([&](void* const(&out)[kSlots], bool descending) { scores<In>(call, out, descending); },
                 [&](void* out, bool descending) {
                     grad_rows<In>(call.rows, call.targets, call.stats, call.up[0], call.up[1], out,
                                   simt::Launch{descending});
                 });
    });
}
