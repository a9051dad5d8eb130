// Uniforms, one a thread.
#pragma once
#include "../api.h"
#include "../philox.h"
#include "simt.cuh"

namespace torchassay {

constexpr int kUniformThreads = 256;

static __global__ void __launch_bounds__(kUniformThreads)
    row_uniforms(const int64_t* row_id, int64_t count, Seed seed, uint32_t step, float* out) {
    const int64_t i = simt::block_index() * kUniformThreads + simt::thread_index();
    if (i >= count) return;
    const uint64_t key = seed.data ? simt::load(seed.data) : seed.value;
    out[i] = pick_uniform(key, simt::load(row_id + i), step);
}

template <class Launch>
void draw_uniforms(const int64_t* row_id, int64_t count, const Seed& seed, uint32_t step, float* out,
                   const Launch& launch) {
    launch(row_uniforms, (count + kUniformThreads - 1) / kUniformThreads, kUniformThreads, row_id, count, seed, step,
           out);
}

}  // namespace torchassay
