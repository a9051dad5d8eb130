// Runs the kernels of the random numbers under the host shim, and csrc/philox.h as C++ compiles it: a request on
// standard input, on standard output the uniforms of a step, the words of a draw, then the numbers of its columns.
// Threads and blocks are taken in both orders.
#include <vector>

#include "philox.cuh"
#include "request.h"

using namespace torchassay;

namespace {

// What launch_on(out, launch) writes, whatever the order of the threads.
template <class LaunchOn>
void write_both_orders(size_t count, const LaunchOn& launch_on) {
    std::vector<float> before, found;
    for (const bool descending : {false, true}) {
        before = found;
        found.assign(count, -7.0f);
        launch_on(found.data(), simt::Launch{descending});
    }
    if (std::memcmp(found.data(), before.data(), count * sizeof(float)))
        simt::fail("the order of the threads changed the output");
    std::fwrite(found.data(), sizeof(float), count, stdout);
}

}  // namespace

int main() {
    const int64_t seed = number(), by_address = number(), draw = number(), n = number(), columns = number();
    const Purpose purpose = Purpose(number());
    const bool uniform = number();
    std::vector<int64_t> rows(number());
    for (int64_t& row : rows) row = number();
    const int64_t count = int64_t(rows.size());
    const Seed given{by_address ? &seed : nullptr, by_address ? 0 : seed};

    write_both_orders(count, [&](float* out, const simt::Launch& launch) {
        draw_uniforms(rows.data(), count, given, uint32_t(draw), out, launch);
    });
    for (const int64_t row : rows) {
        const RandomWords words = random_words(seed, purpose, row, uint32_t(draw), uint32_t(n));
        std::fwrite(words.word, sizeof(words.word), 1, stdout);
    }
    write_both_orders(count * columns, [&](float* out, const simt::Launch& launch) {
        draw_columns({rows.data(), count, columns, 0, given, purpose, uint32_t(draw), uniform, out}, launch);
    });
}
