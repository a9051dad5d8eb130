// The random numbers themselves, row by row, for what adds noise elsewhere.
#include "kernels.h"
#include "vec_memory.h"
#include "vec_random.h"

namespace torchassay {
namespace {

template <bool kUniform>
TORCHASSAY_INLINE void write_rows(const NormalJob& job, int64_t begin, int64_t end) {
    constexpr int n = Simd<float>::kLanes;
    for (int64_t i = begin; i < end; ++i) {
        const RandomRows row(job.key, job.purpose, job.row_id[i]);
        float* out = job.out + i * job.columns;
        for (int64_t j = 0; j < job.columns; j += kRun) {
            F32 run[kRunVectors];
            random_run<kUniform>(row, job.draw, j, run);
            for (int v = 0; v < kRunVectors; ++v) {
                const int64_t left = job.columns - j - v * n;
                if (left >= n)
                    store<float>(out + j + v * n, run[v]);
                else if (left > 0)
                    store_tail<float>(out + j + v * n, run[v], int(left));
            }
        }
    }
}

}  // namespace

namespace TORCHASSAY_ISA {
void normal_rows_any(const NormalJob& job, int64_t begin, int64_t end) {
    job.uniform ? write_rows<true>(job, begin, end) : write_rows<false>(job, begin, end);
}
}  // namespace TORCHASSAY_ISA
}  // namespace torchassay
