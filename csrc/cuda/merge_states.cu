// Launches the kernels that merge states and finish rows from them.
#include "launch.h"
#include "merge_states.cuh"

namespace torchassay {
namespace cuda {

namespace {

void expect_float32(const States& states) {
    if (states.wide) throw std::runtime_error("torchassay: the CUDA kernels have no float64");
}

}  // namespace

void merge_states(const States& states, const Options& options, const States& out, const Place& place) {
    expect_float32(states);
    merge_slices(states, options, out, Launch(place));
}

void finish_states(const States& states, const Targets& targets, const Options& options, void* const out[kSlots],
                   const Place& place) {
    expect_float32(states);
    finish_merged(states, targets, options, out, Launch(place));
}

}  // namespace cuda
}  // namespace torchassay
