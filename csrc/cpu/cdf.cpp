// What share of a window lies below each value. The window is sorted, then a group of values searched side by side.
//
// Numbers are compared as integers in the same order, so neither -0 nor a processor that flushes denormals matters.
// Plain C++ for any CPU, compiled once: gathers were no faster than the loads of many searches at a time.
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "../api.h"
#include "threads.h"

namespace torchassay {
namespace {

constexpr int kGroup = 64;                  // values searched side by side: each alone would wait for its loads
constexpr int64_t kFew = 16;                // up to so many values it is cheaper to count than to sort
constexpr int64_t kLarge = 4096;            // from so many keys on, three passes of 11 bits beat four of 8
constexpr int64_t kThreadedValues = 32768;  // fewer gain little, and a thread whose core is busy costs milliseconds
constexpr int32_t kInfinity = 0x7f800000;

// -inf < ... < 0 < ... < inf as integers, both zeros the same; NaN is above or below them all.
int32_t key_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    if (bits == INT32_MIN) bits = 0;
    return bits < 0 ? bits ^ INT32_MAX : bits;
}

bool is_nan(int32_t key) { return key > kInfinity || key < ~kInfinity; }

// Sorts by the lowest digit first. The result is in one of the two arrays.
template <int kBits>
const int32_t* sort(int32_t* keys, int32_t* room, int64_t count) {
    constexpr int places = (32 + kBits - 1) / kBits, digits = 1 << kBits;
    const auto digit = [](int32_t key, int place) {
        return (uint32_t(key) ^ 0x80000000u) >> (place * kBits) & (digits - 1);
    };
    uint32_t starts[places][digits] = {};
    for (int64_t i = 0; i < count; ++i)
        for (int place = 0; place < places; ++place) ++starts[place][digit(keys[i], place)];
    for (int place = 0; place < places; ++place) {
        uint32_t* start = starts[place];
        if (start[digit(keys[0], place)] == count) continue;  // all have this digit
        uint32_t before = 0;
        for (int d = 0; d < digits; ++d) before += std::exchange(start[d], before);
        for (int64_t i = 0; i < count; ++i) room[start[digit(keys[i], place)]++] = keys[i];
        std::swap(keys, room);
    }
    return keys;
}

// How many keys are below each of a group, of which `asked` are looked at.
struct Sorted {
    const int32_t* keys;
    int32_t count;

    inline __attribute__((always_inline)) void below(const int32_t (&key)[kGroup], int,
                                                     int32_t (&found)[kGroup]) const {
        for (int j = 0; j < kGroup; ++j) found[j] = 0;
        int32_t left = count;
        while (left > 1) {
            const int32_t half = left / 2;
            const int32_t* last = keys + half - 1;
            for (int j = 0; j < kGroup; ++j) found[j] += -(last[found[j]] < key[j]) & half;
            left -= half;
        }
        for (int j = 0; j < kGroup; ++j) found[j] += keys[found[j]] < key[j];
    }
};
struct Unsorted {
    const int32_t* keys;
    int32_t count;

    inline __attribute__((always_inline)) void below(const int32_t (&key)[kGroup], int asked,
                                                     int32_t (&found)[kGroup]) const {
        for (int j = 0; j < asked; ++j) {
            int32_t sum = 0;
            for (int32_t i = 0; i < count; ++i) sum += keys[i] < key[j];
            found[j] = sum;
        }
    }
};

template <class Keys>
void share(const Keys& keys, const Values& values, bool midrank, int64_t begin, int64_t end, float* out) {
    for (int64_t first = begin; first < end; first += kGroup) {
        const int asked = int(end - first < kGroup ? end - first : kGroup);
        int32_t key[kGroup] = {}, found[kGroup], not_above[kGroup] = {};
        for (int j = 0; j < asked; ++j) key[j] = key_of(values.data[(first + j) * values.stride]);
        keys.below(key, asked, found);
        if (midrank) {
            int32_t next[kGroup];
            for (int j = 0; j < kGroup; ++j) next[j] = key[j] + (key[j] < INT32_MAX);
            keys.below(next, asked, not_above);
        }
        const float whole = float(midrank ? 2 * keys.count : keys.count);
        for (int j = 0; j < asked; ++j) out[first + j] = is_nan(key[j]) ? NAN : float(found[j] + not_above[j]) / whole;
    }
}

}  // namespace

void cdf(const Window& window, const Values& values, bool midrank, float* out, int threads) {
    const int64_t count = *window.total < window.capacity ? *window.total : window.capacity;
    if (count <= 0) {
        for (int64_t i = 0; i < values.count; ++i) out[i] = is_nan(key_of(values.data[i * values.stride])) ? NAN : 1.0f;
        return;
    }
    const bool few = values.count <= kFew;
    const std::unique_ptr<int32_t[]> memory(new int32_t[few ? count : 2 * count]);
    int32_t* keys = memory.get();
    for (int64_t i = 0; i < count; ++i) keys[i] = key_of(window.data[i]);
    if (few) return share(Unsorted{keys, int32_t(count)}, values, midrank, 0, values.count, out);
    const Sorted sorted{(count < kLarge ? sort<8> : sort<11>)(keys, keys + count, count), int32_t(count)};
    const int64_t chunk = 4 * kGroup;
    parallel_for(values.count, chunk, values.count < kThreadedValues ? 1 : threads,
                 [&](int64_t begin, int64_t end) { share(sorted, values, midrank, begin, end, out); });
}

void select_probability(float* window, int64_t capacity, int64_t* total, const Values& values, const Selection& how,
                        float* out, int threads) {
    if (how.update) {
        int64_t place = *total % capacity;
        for (int64_t i = 0; i < values.count; ++i) {
            const float value = values.data[i * values.stride];
            if (is_nan(key_of(value)) || (how.mask && !how.mask[i])) continue;
            window[place] = value;
            if (++place == capacity) place = 0;
            ++*total;
        }
    }
    cdf({window, capacity, total}, values, how.midrank, out, threads);
    for (int64_t i = 0; i < values.count; ++i) {
        const float share = out[i];
        float chance = share;
        if (how.beta == 2)
            chance = share * share;
        else if (how.beta == 3)
            chance = share * share * share;
        else if (how.beta != 1)
            chance = std::pow(share, how.beta);
        if (!(chance >= how.p_min)) chance = how.p_min;  // NaN too
        out[i] = how.mask && !how.mask[i] ? 0.0f : chance;
    }
}

}  // namespace torchassay
