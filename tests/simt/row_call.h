// A call of the kernels for rows of logits: a request on standard input, the outputs on standard output.
//
// Threads and blocks are taken in ascending, then in descending order, which must give the same bits. Every buffer
// begins and ends on 16 bytes, as device memory does, and AddressSanitizer sees what lies beyond.
#pragma once
#include <memory>
#include <vector>

#include "request.h"
#include "row_memory.cuh"

namespace torchassay {

class Buffer {
public:
    explicit Buffer(int64_t bytes) : bytes_(bytes), data_(std::aligned_alloc(16, (bytes + 15) / 16 * 16)) {}
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* data() { return data_; }
    void* poisoned() {
        std::memset(data_, 0xa5, bytes_);
        return data_;
    }
    bool holds(const std::vector<char>& bytes) const { return std::memcmp(data_, bytes.data(), bytes_) == 0; }
    std::vector<char> copy() const {
        const auto* begin = static_cast<const char*>(data_);
        return {begin, begin + bytes_};
    }
    void write() const { std::fwrite(data_, 1, bytes_, stdout); }

private:
    int64_t bytes_;
    void* data_;
};

class RowCall {
public:
    int64_t asked, multiprocessors;  // asked: a bit for every slot, 0 for the gradient
    Rows rows{};
    Targets targets{};
    const void* stats = nullptr;
    Upstream up[2]{};

    explicit RowCall(int stats_rows) : stats_rows_(stats_rows) {
        asked = number(), multiprocessors = number();
        rows.dtype = Dtype(number());
        rows.outer = number(), rows.inner = number(), rows.classes = number();
        rows.outer_stride = number(), rows.inner_stride = number();
        const int64_t offset = number();
        rows.data = static_cast<const char*>(read()) + offset;
        targets.wide = number(), targets.ignore_index = number(), targets.data = read();
        if (asked) return;
        stats = read();
        for (auto& g : up) g.stride = number(), g.data = read();
    }

    // The next bytes of the request, so many that a number says how many; null for none.
    void* read() {
        const int64_t bytes = number();
        if (bytes == 0) return nullptr;
        kept_.push_back(std::make_unique<Buffer>(bytes));
        read_bytes(kept_.back()->data(), bytes);
        return kept_.back()->data();
    }

    // Calls scores(out, descending), or if a gradient is asked for grads(out, descending), once in each order.
    template <class Scores, class Grads>
    void run(const Scores& scores, const Grads& grads) const {
        const int64_t count = rows.count(), size = rows.dtype == Dtype::kFloat32 ? 4 : 2;
        std::vector<std::unique_ptr<Buffer>> outputs;
        for (int i = 0; i < kSlots; ++i) {
            const int64_t bytes = i == kStats ? 4 * stats_rows_ : i == kPrediction ? 8 : 4;
            if (asked >> i & 1) outputs.push_back(std::make_unique<Buffer>(count * bytes));
        }
        if (!asked) outputs.push_back(std::make_unique<Buffer>(count * rows.classes * size));
        std::vector<std::vector<char>> before;
        for (const bool descending : {false, true}) {
            void* out[kSlots] = {};
            size_t next = 0;
            for (int i = 0; i < kSlots; ++i)
                if (asked >> i & 1) out[i] = outputs[next++]->poisoned();
            if (asked)
                scores(out, descending);
            else
                grads(outputs[0]->poisoned(), descending);
            for (size_t i = 0; i < outputs.size(); ++i) {
                if (descending && !outputs[i]->holds(before[i]))
                    simt::fail("the order of the threads changed output %zu", i);
                if (!descending) before.push_back(outputs[i]->copy());
            }
        }
        for (const auto& output : outputs) output->write();
    }

private:
    int stats_rows_;
    std::vector<std::unique_ptr<Buffer>> kept_;
};

// f(In{}) for the type of the logits.
template <class Function>
void by_dtype(Dtype dtype, const Function& f) {
    dtype == Dtype::kFloat32 ? f(float{}) : dtype == Dtype::kBfloat16 ? f(Bfloat16{}) : f(Float16{});
}

}  // namespace torchassay
