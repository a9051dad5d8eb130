// What the programs that run kernels under the host shim are asked: numbers and bytes on standard input.
#pragma once
#include <cstdio>
#include <memory>
#include <vector>

#include "api.h"
#include "simt.h"

namespace torchassay {

inline void read_bytes(void* into, int64_t bytes) {
    if (int64_t(std::fread(into, 1, bytes, stdin)) != bytes) simt::fail("the request is too short");
}

inline int64_t number() {
    int64_t value;
    read_bytes(&value, sizeof(value));
    return value;
}

inline double real() {
    double value;
    read_bytes(&value, sizeof(value));
    return value;
}

// Begins and ends on 16 bytes, as device memory does, and AddressSanitizer sees what lies beyond.
class Buffer {
public:
    explicit Buffer(int64_t bytes) : bytes_(bytes), data_(std::aligned_alloc(16, (bytes + 15) / 16 * 16)) {}
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // The next bytes of the request, so many that a number says how many.
    static void* read(std::vector<Buffer*>& kept) {
        const int64_t bytes = number();
        if (bytes == 0) return nullptr;
        auto* buffer = new Buffer(bytes);
        kept.push_back(buffer);
        read_bytes(buffer->data_, bytes);
        return buffer->data_;
    }
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

// Rows where they lie in a buffer.
inline Rows rows_of_request(std::vector<Buffer*>& kept) {
    Rows rows{};
    rows.dtype = Dtype(number());
    rows.outer = number(), rows.inner = number(), rows.classes = number();
    rows.outer_stride = number(), rows.inner_stride = number();
    const int64_t offset = number();
    rows.data = static_cast<const char*>(Buffer::read(kept)) + offset;
    return rows;
}

inline Targets targets_of_request(std::vector<Buffer*>& kept) {
    Targets targets{};
    targets.wide = number(), targets.ignore_index = number(), targets.first = number(), targets.total = number();
    targets.data = Buffer::read(kept);
    return targets;
}

inline Options options_of_request(std::vector<Buffer*>& kept) {
    Options options{};
    options.weight = Buffer::read(kept), options.probabilities = Buffer::read(kept);
    options.temperature.data = Buffer::read(kept), options.temperature.value = real();
    options.label_smoothing = real(), options.softcap = real(), options.z_loss = real();
    return options;
}

// Fills outputs of so many bytes each by f(outputs, descending) and writes them. Threads and blocks are taken in
// ascending, then in descending order, which must give the same bits.
template <class Function>
void in_both_orders(const std::vector<int64_t>& bytes, const Function& f) {
    std::vector<std::unique_ptr<Buffer>> outputs;
    for (const int64_t size : bytes) outputs.push_back(std::make_unique<Buffer>(size));
    std::vector<std::vector<char>> before;
    for (const bool descending : {false, true}) {
        std::vector<void*> out;
        for (const auto& output : outputs) out.push_back(output->poisoned());
        f(out, descending);
        for (size_t i = 0; i < outputs.size(); ++i) {
            if (descending && !outputs[i]->holds(before[i]))
                simt::fail("the order of the threads changed output %zu", i);
            if (!descending) before.push_back(outputs[i]->copy());
        }
    }
    for (const auto& output : outputs) output->write();
}

// The same for signals of rows, of which `asked` has a bit for every slot: f(out, descending).
template <class Function>
void slots_in_both_orders(int64_t asked, int64_t count, int stats_rows, const Function& f) {
    std::vector<int64_t> bytes;
    for (int i = 0; i < kSlots; ++i)
        if (asked >> i & 1) bytes.push_back(count * (i == kStats ? 4 * stats_rows : i == kPrediction ? 8 : 4));
    in_both_orders(bytes, [&](const std::vector<void*>& outputs, bool descending) {
        void* out[kSlots] = {};
        size_t next = 0;
        for (int i = 0; i < kSlots; ++i)
            if (asked >> i & 1) out[i] = outputs[next++];
        f(out, descending);
    });
}

}  // namespace torchassay
