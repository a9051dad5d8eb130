// Runs the kernels for slices of rows under the host shim. The request begins with what is asked for: 0 the states of
// rows, as in row_call.h; 1 one state of several; 2 the signals of rows from theirs.
#include "merge_states.cuh"
#include "row_call.h"
#include "row_states.cuh"

using namespace torchassay;

namespace {

States at(void* const out[kSlots], int64_t count, bool smoothed) {
    return {out[kStats], static_cast<int64_t*>(out[kPrediction]), 1, count, false, smoothed};
}

template <class In>
void states(const RowCall& call, const Options& options, void* const (&out)[kSlots], bool descending) {
    const bool cut = cut_into_spans(call.rows, int(call.multiprocessors));
    Buffer lanes(cut ? call.rows.count() * spans_of<In>(call.rows) * kThreads * int64_t(sizeof(Words)) : 16);
    states_of_rows<In>(call.rows, call.targets, options, at(out, call.rows.count(), options.label_smoothing > 0),
                       lanes.poisoned(), int(call.multiprocessors), simt::Launch{descending});
}

void row_states() {
    const bool smoothed = number();
    RowCall call(smoothed ? kSmoothedNumbers : kStateNumbers);
    const Options options = call.options();
    by_dtype(call.rows.dtype, [&](auto one) {
        using In = decltype(one);
        call.run([&](void* const(&out)[kSlots], bool descending) { states<In>(call, options, out, descending); },
                 [](void*, bool) { simt::fail("there is no gradient of states"); });
    });
}

void merge_or_finish(bool finish) {
    std::vector<Buffer*> kept;
    States given{};
    given.smoothed = number(), given.parts = number(), given.count = number();
    given.numbers = Buffer::read(kept), given.k = static_cast<int64_t*>(Buffer::read(kept));
    const int64_t asked = number(), n = given.count;
    const Targets targets = targets_of_request(kept);
    const Options options = options_of_request(kept);
    const int numbers = given.smoothed ? kSmoothedNumbers : kStateNumbers;
    slots_in_both_orders(asked, n, finish ? 7 : numbers, [&](void* const(&out)[kSlots], bool descending) {
        if (finish)
            finish_merged(given, targets, options, out, simt::Launch{descending});
        else
            merge_slices(given, options, at(out, n, given.smoothed), simt::Launch{descending});
    });
    for (const Buffer* buffer : kept) delete buffer;
}

}  // namespace

int main() {
    const int64_t asked = number();
    if (asked == 0)
        row_states();
    else
        merge_or_finish(asked == 2);
}
