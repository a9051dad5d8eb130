// Runs the kernels of head_scores.cuh under the host shim: a request on standard input, the signals on standard output.
//
// Both orders of the threads must give the same bits. Every buffer ends where its numbers end, so AddressSanitizer sees
// any access beyond.
#include <vector>

#include "head_scores.cuh"
#include "request.h"

using namespace torchassay;

namespace {

// The next bytes of the request, so many that a number says how many.
std::vector<char> bytes() {
    std::vector<char> read(number());
    read_bytes(read.data(), int64_t(read.size()));
    return read;
}

}  // namespace

int main() {
    HeadTask task{};
    task.head = Head(number());
    task.rows.dtype = Dtype(number());
    task.rows.outer = 1, task.rows.inner = number(), task.rows.classes = number();
    read_bytes(&task.delta, sizeof(task.delta));
    task.rows.inner_stride = number();
    const std::vector<char> input = bytes();
    task.target_stride = number();
    const std::vector<char> target = bytes(), weight = bytes();
    task.rows.data = input.data(), task.target = target.data();
    task.pos_weight = weight.empty() ? nullptr : weight.data();

    const int64_t count = task.rows.count();
    std::vector<float> found[2][3];
    for (const bool descending : {false, true}) {
        for (int i = 0; i < 3; ++i) {
            found[descending][i].assign(count, -7.0f);
            task.out[i] = found[descending][i].data();
        }
        const simt::Launch launch{descending};
        if (task.rows.dtype == Dtype::kFloat32)
            score_heads<float>(task, launch);
        else if (task.rows.dtype == Dtype::kBfloat16)
            score_heads<Bfloat16>(task, launch);
        else
            score_heads<Float16>(task, launch);
    }
    for (int i = 0; i < 3; ++i) {
        if (std::memcmp(found[0][i].data(), found[1][i].data(), count * sizeof(float)))
            simt::fail("the order of the threads changed output %d", i);
        std::fwrite(found[0][i].data(), sizeof(float), count, stdout);
    }
}
