// The shares of a window: a small program, in which a mistake can be planted.
#include <cstdio>
#include <vector>

#include "api.h"

int main() {
    const std::vector<float> window(100, 1.0f), values(40, 2.0f);
    std::vector<float> out(40);
    const int64_t total = 100;
    torchassay::cdf({window.data(), 100, &total}, {values.data(), 1, 40}, true, out.data(), 1);
    std::printf("%g\n", out[39]);
}
