// Launches the kernels of the random numbers.
#include "launch.h"
#include "philox.cuh"

namespace torchassay {
namespace cuda {

void uniforms(const int64_t* row_id, int64_t count, const Seed& seed, uint32_t step, float* out, const Place& place) {
    draw_uniforms(row_id, count, seed, step, out, Launch(place));
}

void normals(const int64_t* row_id, int64_t rows, const Seed& seed, int purpose, uint32_t draw, int64_t columns,
             bool uniform, float* out, const Place& place) {
    draw_columns({row_id, rows, columns, 0, seed, Purpose(purpose), draw, uniform, out}, Launch(place));
}

}  // namespace cuda
}  // namespace torchassay
