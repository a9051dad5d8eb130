// Uniforms on the CPU, one row after the other: nothing beside the reads of logits that they decide on.
#include "../philox.h"

#include "../api.h"

namespace torchassay {

void uniforms(const int64_t* row_id, int64_t count, const Seed& seed, uint32_t step, float* out) {
    const uint64_t key = seed.data ? *seed.data : seed.value;
    for (int64_t i = 0; i < count; ++i) out[i] = pick_uniform(key, row_id[i], step);
}

}  // namespace torchassay
