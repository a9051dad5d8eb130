// Runs the kernel of the uniforms under the host shim, and csrc/philox.h as C++ compiles it: a request on standard
// input, on standard output the uniforms of a step, then the words of a draw. Threads and blocks are taken in both
// orders.
#include <vector>

#include "philox.cuh"
#include "request.h"

using namespace torchassay;

int main() {
    const int64_t seed = number(), by_address = number(), purpose = number(), draw = number(), n = number();
    std::vector<int64_t> rows(number());
    for (int64_t& row : rows) row = number();
    const Seed given{by_address ? &seed : nullptr, by_address ? 0 : seed};

    std::vector<float> before, found;
    for (const bool descending : {false, true}) {
        before = found;
        found.assign(rows.size(), -1.0f);
        draw_uniforms(rows.data(), int64_t(rows.size()), given, uint32_t(draw), found.data(), simt::Launch{descending});
    }
    if (found != before) simt::fail("the order of the threads changed the output");
    std::fwrite(found.data(), sizeof(float), found.size(), stdout);
    for (const int64_t row : rows) {
        const RandomWords words = random_words(seed, Purpose(purpose), row, uint32_t(draw), uint32_t(n));
        std::fwrite(words.word, sizeof(words.word), 1, stdout);
    }
}
