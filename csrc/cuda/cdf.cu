// Launches the kernel of the share below.
#include "cdf.cuh"
#include "launch.h"

namespace torchassay {
namespace cuda {

void cdf(const Window& window, const Values& values, bool midrank, float* out, const Place& place) {
    share_below(window, values, midrank, out, Launch(place));
}

}  // namespace cuda
}  // namespace torchassay
