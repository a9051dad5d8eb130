// Signals over several draws of rows of logits on the CPU: noisy copies, whose random numbers are made in registers, or
// the members of an ensemble. Short rows stand in lanes, longer ones and all of float64 along memory.
#include "draws_along_memory.h"
#include "draws_in_lanes.h"

namespace torchassay {
namespace {

template <class T>
TORCHASSAY_INLINE bool in_lanes(const DrawJob& job) {
    return sizeof(T) == 4 && job.rows.classes <= kInLanes;
}

template <class T, class In>
void draw_rows(const DrawJob& job, int64_t begin, int64_t end, void* scratch) {
    if constexpr (sizeof(T) == 4) {
        if (in_lanes<T>(job)) {
            if (job.draws.top) return draws_in_lanes<In, true>(job, begin, end);
            return draws_in_lanes<In, false>(job, begin, end);
        }
    }
    if (job.draws.top) return draws_along_memory<T, In, true>(job, begin, end, scratch);
    draws_along_memory<T, In, false>(job, begin, end, scratch);
}

}  // namespace

namespace TORCHASSAY_ISA {
int64_t draw_scratch_any(const DrawJob& job) {
    if (job.rows.dtype == Dtype::kFloat64) return scratch_along_memory<double>(job);
    return in_lanes<float>(job) ? 0 : scratch_along_memory<float>(job);
}
void draw_rows_any(const DrawJob& job, int64_t begin, int64_t end, void* scratch) {
    TORCHASSAY_BY_DTYPE(draw_rows, begin, end, scratch)
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
