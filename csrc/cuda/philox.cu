// Launches the kernel of the uniforms.
#include "launch.h"
#include "philox.cuh"

namespace torchassay {
namespace cuda {

void uniforms(const int64_t* row_id, int64_t count, const Seed& seed, uint32_t step, float* out, const Place& place) {
    draw_uniforms(row_id, count, seed, step, out, Launch(place));
}

}  // namespace cuda
}  // namespace torchassay
