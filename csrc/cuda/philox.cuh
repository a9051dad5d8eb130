// Random numbers themselves: the uniforms that decide on picks, one a thread, and the numbers of a row's columns, a
// block of four a thread.
#pragma once
#include "normal.cuh"

namespace torchassay {

constexpr int kRandomThreads = 256;

static __global__ void __launch_bounds__(kRandomThreads)
    row_uniforms(const int64_t* row_id, int64_t count, Seed seed, uint32_t step, float* out) {
    const int64_t i = simt::block_index() * kRandomThreads + simt::thread_index();
    if (i >= count) return;
    out[i] = pick_uniform(seed_value(seed), simt::load(row_id + i), step);
}

template <class Launch>
void draw_uniforms(const int64_t* row_id, int64_t count, const Seed& seed, uint32_t step, float* out,
                   const Launch& launch) {
    launch(row_uniforms, (count + kRandomThreads - 1) / kRandomThreads, kRandomThreads, row_id, count, seed, step, out);
}

// What the numbers of columns are launched with.
struct ColumnTask {
    const int64_t* row_id;
    int64_t rows, columns, blocks;  // blocks of four words a row
    Seed seed;
    Purpose purpose;
    uint32_t draw;
    bool uniform;
    float* out;
};

static __global__ void __launch_bounds__(kRandomThreads) column_numbers(ColumnTask task) {
    const int64_t i = simt::block_index() * kRandomThreads + simt::thread_index();
    const int64_t row = i / task.blocks, n = i - row * task.blocks;
    if (row >= task.rows) return;
    const RandomWords words =
        random_words(seed_value(task.seed), task.purpose, simt::load(task.row_id + row), task.draw, uint32_t(n));
    Columns numbers;
    if (task.uniform) {
#pragma unroll
        for (int q = 0; q < 4; ++q) numbers.of[q] = uniform_of(words.word[q]);
    } else {
        numbers = normals_of(words);
    }
    const int64_t first = block_column(n);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const int64_t column = first + q * kBlockStride;
        if (column < task.columns) task.out[row * task.columns + column] = numbers.of[q];
    }
}

template <class Launch>
void draw_columns(ColumnTask task, const Launch& launch) {
    task.blocks = blocks_of(task.columns);
    const int64_t threads = task.rows * task.blocks;
    launch(column_numbers, (threads + kRandomThreads - 1) / kRandomThreads, kRandomThreads, task);
}

}  // namespace torchassay
