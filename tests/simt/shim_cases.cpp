// What test_simt.py runs to test simt.h itself: kernels that are right, or wrong where `wrong` says so.
//
//     shim_cases CASE right|wrong ascending|descending [ACCESS]
//     shim_cases FUNCTION < triples of words > the function of each
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "simt.cuh"

using namespace torchassay::simt;

namespace {

// ---- kernels that are right

__global__ void block_sums(const float* x, float* out) {
    __shared__ Shared<float, 128> part;
    const int t = thread_index();
    part.write(t, load(x + block_index() * 128 + t));
    for (int width = 64; width; width /= 2) {
        sync_block();
        if (t < width) part.write(t, part.read(t) + part.read(t + width));
    }
    if (t == 0) out[block_index()] = part.read(0);
}

__global__ void turns(int* out, int* next) { out[block_index() * 64 + thread_index()] = (*next)++; }

template <class T>
__global__ void shuffles(T* out) {
    const int t = thread_index();
    const T value = T((t + 1) * 0x100000001);
    for (int mask = 0; mask < 32; ++mask) out[mask * 64 + t] = shuffle_xor(value, mask);
}

// ---- races on shared memory

__global__ void race_between_warps(bool wrong) {
    __shared__ Shared<int, 64> a;
    const int t = thread_index();
    a.write(t, 0);
    sync_block();
    a.write(t, 1);
    if (wrong)
        sync_warp();
    else
        sync_block();
    a.read(t ^ 32);
}

__global__ void race_in_a_warp(bool wrong) {
    __shared__ Shared<int, 64> a;
    const int t = thread_index();
    a.write(t, 1);
    shuffle_xor(t, 1);
    if (!wrong) sync_warp();
    a.read(t ^ 1);
}

__global__ void write_after_read(bool wrong) {
    __shared__ Shared<int, 1> a;
    const int t = thread_index();
    if (t == 0) a.write(0, 1);
    sync_block();
    a.read(0);
    shuffle_xor(0, 1);
    if (!wrong) sync_block();
    if (t == 0) a.write(0, 2);
}

// The barrier of the writer's own warp is none for the other's reads.
__global__ void write_after_read_by_another_warp(bool wrong) {
    __shared__ Shared<int, 1> a;
    const int t = thread_index();
    if (t == 0) a.write(0, 1);
    sync_block();
    a.read(0);
    if (wrong)
        sync_warp();
    else
        sync_block();
    if (t == 39) a.write(0, 2);
}

__global__ void two_writers(bool wrong) {
    __shared__ Shared<int, 64> a;
    a.write(wrong ? thread_index() / 2 : thread_index(), 1);
}

// ---- other wrong uses of shared memory

__global__ void read_before_write(bool wrong) {
    __shared__ Shared<int, 64> a;
    const int t = thread_index();
    if (t != 9 || !wrong) a.write(t, 1);
    sync_block();
    a.read(t);
}

__global__ void read_of_another_block(bool wrong) {
    __shared__ Shared<int, 64> a;
    if (block_index() == 1 || !wrong) a.write(thread_index(), 1);
    a.read(thread_index());
}

__global__ void index_too_high(bool wrong) {
    __shared__ Shared<int, 64> a;
    a.write(thread_index() + wrong, 1);
}

// ---- threads that do not meet

__global__ void divergent_barriers(bool wrong) { thread_index() % 32 == 3 && wrong ? sync_warp() : sync_block(); }

__global__ void divergent_places(bool wrong) {
    if (thread_index() % 32 == 3 && wrong)
        shuffle_xor(0, 1);
    else
        shuffle_xor(0, 1);
}

__global__ void divergent_warps(bool wrong) {
    if (thread_index() < 32 || !wrong) sync_block();
}

__global__ void lane_that_left(bool wrong) {
    if (thread_index() == 3 && wrong) return;
    shuffle_xor(0, 1);
}

__global__ void shuffle_mask(bool wrong) { shuffle_xor(0, wrong ? 32 : 31); }

__global__ void funnel_bits(bool wrong) { funnel_right(1, 1, wrong ? 32 : 31); }

// ---- wrong addresses

// What is behind the array is the fiber's own stack.
__global__ void local_array(bool wrong) {
    int a[4] = {};
    int* volatile p = a;
    sync_warp();
    p[wrong ? 4 : 3] = 1;
}

__global__ void touch(void (*access)(char*), char* p) {
    sync_warp();
    if (thread_index() == 5) access(p);
}

struct Touch {
    int bytes;
    void (*access)(char*);
};
volatile uint32_t used;  // else the compiler drops the load, and its check with it
const std::map<std::string, Touch> kTouches = {
    {"load_16", {16, [](char* p) { used = load_16(p).word[0]; }}},
    {"load_16_once", {16, [](char* p) { used = load_16_once(p).word[0]; }}},
    {"load_16_written", {16, [](char* p) { used = load_16_written(p).word[0]; }}},
    {"load_8", {8, [](char* p) { used = load_8(p).word[0]; }}},
    {"load", {4, [](char* p) { used = load(reinterpret_cast<uint32_t*>(p)); }}},
    {"store_16", {16, [](char* p) { store_16(p, {}); }}},
};

// The last byte is the one behind the buffer.
void outside(const Touch& touched, Launch launch, bool wrong) {
    char* buffer = new char[64 - wrong]();
    launch(touch, 1, 32, touched.access, buffer + 64 - touched.bytes);
    delete[] buffer;
}
void misaligned(const Touch& touched, Launch launch, bool wrong) {
    alignas(16) char buffer[64] = {};
    launch(touch, 1, 32, touched.access, buffer + (wrong ? touched.bytes / 2 : touched.bytes));
}

// ---- what the program prints

template <class T>
void print(const std::vector<T>& values) {
    for (const T& value : values) std::printf("%s\n", std::to_string(value).c_str());
}

template <class T>
void print_shuffles(Launch launch, bool) {
    std::vector<T> out(32 * 64);
    launch(shuffles<T>, 1, 64, out.data());
    print(out);
}

void print_block_sums(Launch launch, bool) {
    std::vector<float> x(3 * 128), out(3);
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(i);
    launch(block_sums, 3, 128, x.data(), out.data());
    print(out);
}

void print_turns(Launch launch, bool) {
    std::vector<int> out(3 * 64);
    int next = 0;
    launch(turns, 3, 64, out.data(), &next);
    print(out);
}

template <void kernel(bool)>
void run(Launch launch, bool wrong) {
    launch(kernel, 2, 64, wrong);
}

const std::map<std::string, void (*)(Launch, bool)> kCases = {
    {"block_sums", print_block_sums},
    {"turns", print_turns},
    {"float", print_shuffles<float>},
    {"int", print_shuffles<int>},
    {"uint32", print_shuffles<uint32_t>},
    {"int64", print_shuffles<int64_t>},
    {"uint64", print_shuffles<uint64_t>},
    {"race_between_warps", run<race_between_warps>},
    {"race_in_a_warp", run<race_in_a_warp>},
    {"write_after_read", run<write_after_read>},
    {"write_after_read_by_another_warp", run<write_after_read_by_another_warp>},
    {"two_writers", run<two_writers>},
    {"read_before_write", run<read_before_write>},
    {"read_of_another_block", run<read_of_another_block>},
    {"index_too_high", run<index_too_high>},
    {"divergent_barriers", run<divergent_barriers>},
    {"divergent_places", run<divergent_places>},
    {"divergent_warps", run<divergent_warps>},
    {"lane_that_left", run<lane_that_left>},
    {"shuffle_mask", run<shuffle_mask>},
    {"funnel_bits", run<funnel_bits>},
    {"local_array", run<local_array>},
    {"threads", [](Launch launch, bool wrong) { launch(lane_that_left, 1, wrong ? 48 : 1024, false); }},
    {"blocks", [](Launch launch, bool wrong) { launch(lane_that_left, wrong ? 0 : 1, 32, false); }},
};

// ---- arithmetic

struct Triple {
    uint32_t a, b, c;
    float x() const { return as_float(a); }
    float y() const { return as_float(b); }
    float z() const { return as_float(c); }
};

const std::map<std::string, uint32_t (*)(Triple)> kFunctions = {
    {"fused", [](Triple t) { return as_bits(fused(t.x(), t.y(), t.z())); }},
    {"square_root", [](Triple t) { return as_bits(square_root(t.x())); }},
    {"exp2_fast", [](Triple t) { return as_bits(exp2_fast(t.x())); }},
    {"reciprocal_fast", [](Triple t) { return as_bits(reciprocal_fast(t.x())); }},
    {"larger", [](Triple t) { return as_bits(larger(t.x(), t.y())); }},
    {"smaller", [](Triple t) { return as_bits(smaller(t.x(), t.y())); }},
    {"larger_or_nan", [](Triple t) { return as_bits(larger_or_nan(t.x(), t.y())); }},
    {"smaller_or_nan", [](Triple t) { return as_bits(smaller_or_nan(t.x(), t.y())); }},
    {"larger_bf16x2", [](Triple t) { return larger_bf16x2(t.a, t.b); }},
    {"smaller_bf16x2", [](Triple t) { return smaller_bf16x2(t.a, t.b); }},
    {"smaller_or_nan_bf16x2", [](Triple t) { return smaller_or_nan_bf16x2(t.a, t.b); }},
    {"larger_f16x2", [](Triple t) { return larger_f16x2(t.a, t.b); }},
    {"smaller_f16x2", [](Triple t) { return smaller_f16x2(t.a, t.b); }},
    {"smaller_or_nan_f16x2", [](Triple t) { return smaller_or_nan_f16x2(t.a, t.b); }},
    {"widen_f16", [](Triple t) { return as_bits(widen_f16(uint16_t(t.a))); }},
    {"narrow_f16x2", [](Triple t) { return narrow_f16x2(t.x(), t.y()); }},
    {"narrow_bf16x2", [](Triple t) { return narrow_bf16x2(t.x(), t.y()); }},
    {"funnel_right", [](Triple t) { return funnel_right(t.a, t.b, int(t.c)); }},
    {"multiply_high", [](Triple t) { return uint32_t(multiply_high(uint64_t(t.a) << 32 | t.b, uint64_t(t.c) << 17)); }},
};

}  // namespace

int main(int argc, char** argv) {
    const std::string name = argv[1];
    if (argc == 2) {
        Triple in;
        while (std::fread(&in, sizeof(in), 1, stdin)) {
            const uint32_t out = kFunctions.at(name)(in);
            std::fwrite(&out, sizeof(out), 1, stdout);
        }
        return 0;
    }
    const bool wrong = !std::strcmp(argv[2], "wrong");
    const Launch launch{!std::strcmp(argv[3], "descending")};
    if (name == "outside")
        outside(kTouches.at(argv[4]), launch, wrong);
    else if (name == "misaligned")
        misaligned(kTouches.at(argv[4]), launch, wrong);
    else
        kCases.at(name)(launch, wrong);
}
