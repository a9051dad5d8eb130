// The kernels that row_states.cu does not launch itself: compiled on their own, they take half as long.
#include "launch.h"
#include "row_states.cuh"

namespace torchassay {

template void sweep_rows<float>(const Rows&, const StateTask&, const Launch&);
template void sweep_rows<Bfloat16>(const Rows&, const StateTask&, const Launch&);
template void sweep_rows<Float16>(const Rows&, const StateTask&, const Launch&);

}  // namespace torchassay
