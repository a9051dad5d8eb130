// What the programs that run kernels under the host shim are asked: numbers and bytes on standard input.
#pragma once
#include <cstdio>
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

}  // namespace torchassay
