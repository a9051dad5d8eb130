// The same under options, which come last in the request.
#include "option_grads.cuh"
#include "option_scores.cuh"
#include "row_call.h"

using namespace torchassay;

namespace {

template <class In>
void scores(const RowCall& call, const Options& options, void* const (&out)[kSlots], bool descending) {
    const bool cut = cut_into_spans(call.rows, int(call.multiprocessors));
    Buffer states(cut ? call.rows.count() * spans_of<In>(call.rows) * kThreads * int64_t(sizeof(Words)) : 16);
    score_rows_with_options<In>(call.rows, call.targets, options, out, states.poisoned(), int(call.multiprocessors),
                                simt::Launch{descending});
}

}  // namespace

int main() {
    RowCall call(7);
    const Options options = call.options();
    by_dtype(call.rows.dtype, [&](auto one) {
        using In = decltype(one);
        call.run([&](void* const(&out)[kSlots], bool descending) { scores<In>(call, options, out, descending); },
                 [&](void* out, bool descending) {
                     grad_rows_with_options<In>(call.rows, call.targets, options, call.stats, call.up[0], call.up[1],
                                                out, simt::Launch{descending});
                 });
    });
}
