// The kernels that option_scores.cu does not launch itself: compiled on their own, they take half as long.
#include "launch.h"
#include "option_sweeps.cuh"

namespace torchassay {

template void sweep_rows<float>(const Rows&, const OptionTask&, const Launch&);
template void sweep_rows<Bfloat16>(const Rows&, const OptionTask&, const Launch&);
template void sweep_rows<Float16>(const Rows&, const OptionTask&, const Launch&);

}  // namespace torchassay
