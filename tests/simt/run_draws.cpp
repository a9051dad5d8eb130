// Runs the kernels of several draws under the host shim: a request on standard input, the outputs on standard output.
// Both orders of the threads must give the same bits.
#include "draw_scores.cuh"
#include "request.h"

using namespace torchassay;

namespace {

double real() {
    double value;
    read_bytes(&value, sizeof(value));
    return value;
}

Number number_for_rows(std::vector<Buffer*>& kept) {
    const void* data = Buffer::read(kept);
    return {data, real()};
}

template <class In>
void scores(const Rows& rows, const Draws& draws, void* const out[kDrawSlots], const simt::Launch& launch) {
    Buffer states(draw_states_bytes(rows, draws));
    score_draws<In>(rows, draws, out, states.poisoned(), launch);
}

}  // namespace

int main() {
    std::vector<Buffer*> kept, outputs;
    const int64_t asked = number();  // a bit for every slot
    const Rows rows = rows_of_request(kept);
    Draws draws{};
    draws.count = number(), draws.stride = number(), draws.top = Buffer::read(kept);
    draws.std = number_for_rows(kept), draws.scale = number_for_rows(kept);
    draws.row_id = static_cast<const int64_t*>(Buffer::read(kept));
    const bool by_address = number();
    const int64_t seed = number();
    draws.seed = {by_address ? &seed : nullptr, by_address ? 0 : seed};
    for (int i = 0; i < kDrawSlots; ++i)
        if (asked >> i & 1) outputs.push_back(new Buffer(rows.count() * 4));

    std::vector<std::vector<char>> before;
    for (const bool descending : {false, true}) {
        void* out[kDrawSlots] = {};
        size_t next = 0;
        for (int i = 0; i < kDrawSlots; ++i)
            if (asked >> i & 1) out[i] = outputs[next++]->poisoned();
        const simt::Launch launch{descending};
        if (rows.dtype == Dtype::kFloat32)
            scores<float>(rows, draws, out, launch);
        else if (rows.dtype == Dtype::kBfloat16)
            scores<Bfloat16>(rows, draws, out, launch);
        else
            scores<Float16>(rows, draws, out, launch);
        for (size_t i = 0; i < outputs.size(); ++i) {
            if (descending && !outputs[i]->holds(before[i]))
                simt::fail("the order of the threads changed output %zu", i);
            if (!descending) before.push_back(outputs[i]->copy());
        }
    }
    for (const Buffer* output : outputs) output->write(), delete output;
    for (const Buffer* buffer : kept) delete buffer;
}
