// The shares of a window: a small program, in which a mistake can be planted.
#include <cstdio>
#include <numeric>
#include <vector>

#include "api.h"

int main() {
    std::vector<float> window(100), out(40);
    std::iota(window.begin(), window.end(), 0.0f);
    const std::vector<float> values(40, 25.0f);
    const int64_t total = 100;
    torchassay::cdf({window.data(), 100, &total}, {values.data(), 1, 40}, false, out.data(), 1);
    std::printf("%g\n", out[39]);
}
