// Runs the kernels of several draws under the host shim: a request on standard input, the outputs on standard output.
#include "draw_scores.cuh"
#include "request.h"

using namespace torchassay;

namespace {

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
    std::vector<Buffer*> kept;
    const int64_t asked = number();  // a bit for every slot
    const Rows rows = rows_of_request(kept);
    Draws draws{};
    draws.count = number(), draws.stride = number(), draws.top = Buffer::read(kept);
    draws.std = number_for_rows(kept), draws.scale = number_for_rows(kept);
    draws.row_id = static_cast<const int64_t*>(Buffer::read(kept));
    const bool by_address = number();
    const int64_t seed = number();
    draws.seed = {by_address ? &seed : nullptr, by_address ? 0 : seed};
    std::vector<int64_t> bytes;
    for (int i = 0; i < kDrawSlots; ++i)
        if (asked >> i & 1) bytes.push_back(rows.count() * 4);
    in_both_orders(bytes, [&](const std::vector<void*>& outputs, bool descending) {
        void* out[kDrawSlots] = {};
        size_t next = 0;
        for (int i = 0; i < kDrawSlots; ++i)
            if (asked >> i & 1) out[i] = outputs[next++];
        const simt::Launch launch{descending};
        if (rows.dtype == Dtype::kFloat32)
            scores<float>(rows, draws, out, launch);
        else if (rows.dtype == Dtype::kBfloat16)
            scores<Bfloat16>(rows, draws, out, launch);
        else
            scores<Float16>(rows, draws, out, launch);
    });
    for (const Buffer* buffer : kept) delete buffer;
}
