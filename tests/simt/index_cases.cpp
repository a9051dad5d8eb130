// The kernels' index arithmetic far beyond 32 bits, against plain division; no memory is touched. Ends with status 1
// and a line for the first mistake.
#include <cstdio>

#include "row_grads.cuh"

using namespace torchassay;

namespace {

int wrong(const char* what, int64_t a, int64_t b) {
    std::fprintf(stderr, "%s: %lld, %lld\n", what, (long long)a, (long long)b);
    return 1;
}

}  // namespace

int main() {
    for (const int64_t classes : {1, 2, 3, 7, 10, 100, 1000, 50257, 151936, (1 << 30) - 1}) {
        GradTask task{};
        task.rows.classes = int(classes);
        task.reciprocal = ~uint64_t(0) / uint64_t(classes);
        for (int bits = 0; bits < 45; ++bits)
            for (int64_t near = -2; near <= 2; ++near)
                for (const int64_t base : {int64_t(1) << bits, (int64_t(1) << bits) / classes * classes}) {
                    const int64_t first = base + near;
                    if (first < 0) continue;
                    const Spot at = spot_of(task, first);
                    if (at.row != first / classes || at.column != first % classes) return wrong("spot", classes, first);
                }
    }
    const int64_t far = (int64_t(1) << 33) + 5;
    const uint16_t* origin = nullptr;
    for (const int64_t row : {int64_t(0), int64_t(2), int64_t(3), far}) {
        const RowsOnDevice folded = on_device({origin, Dtype::kBfloat16, 1, far + 1, 8, 0, 12});
        const RowsOnDevice strided = on_device({origin, Dtype::kBfloat16, far, 3, 8, 1 << 20, 16});
        const auto at = [](const Bfloat16* p) { return int64_t(reinterpret_cast<uintptr_t>(p)); };
        if (at(row_start<Bfloat16>(folded, row)) != row * 12 * 2) return wrong("folded", row, far);
        if (at(row_start<Bfloat16>(strided, row)) != (row / 3 * (1 << 20) + row % 3 * 16) * 2)
            return wrong("strided", row, far);
    }
    std::puts("all right");
}
