// Runs the kernel of cdf.cuh under the host shim: a request on standard input, the shares on standard output.
//
// Both orders of the threads must give the same bits. The window, the values and the output end where their buffers
// end, so AddressSanitizer sees any access beyond.
#include <vector>

#include "cdf.cuh"
#include "request.h"

using namespace torchassay;

namespace {

std::vector<float> floats(int64_t count) {
    std::vector<float> read(count);
    read_bytes(read.data(), count * int64_t(sizeof(float)));
    return read;
}

}  // namespace

int main() {
    const int64_t capacity = number(), total = number(), count = number(), stride = number(), midrank = number();
    const std::vector<float> window = floats(capacity), values = floats((count - 1) * stride + 1);
    std::vector<float> found[2];
    for (const bool descending : {false, true}) {
        found[descending].assign(count, -7.0f);
        share_below({window.data(), capacity, &total}, {values.data(), stride, count}, midrank,
                    found[descending].data(), simt::Launch{descending});
    }
    if (std::memcmp(found[0].data(), found[1].data(), count * sizeof(float)))
        simt::fail("the order of the threads changed the output");
    std::fwrite(found[0].data(), sizeof(float), count, stdout);
}
