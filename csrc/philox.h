// Random numbers as a pure function of a seed, a row's id and a place: Philox4x32-10 (Salmon, Moraes, Dror and Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011), whose words are those of their Random123.
//
// The key is the seed, low word first. The counter says what is drawn, and for which row: so a number belongs to the
// row's id, wherever the row lies, whatever the batch or the backend.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace torchassay {

struct RandomWords {
    uint32_t word[4];
};

struct Product {
    uint32_t high, low;
};

TORCHASSAY_HD Product wide_product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
    return {__umulhi(a, b), a * b};  // one instruction; taken from 64 bits, the key's steps would cost two
#else
    const uint64_t product = uint64_t(a) * b;
    return {uint32_t(product >> 32), uint32_t(product)};
#endif
}

TORCHASSAY_HD RandomWords philox4x32(RandomWords counter, uint64_t key) {
    uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
    uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const Product a = wide_product(c0, 0xd2511f53u), b = wide_product(c2, 0xcd9e8d57u);
        c0 = b.high ^ c1 ^ low;
        c1 = b.low;
        c2 = a.high ^ c3 ^ high;
        c3 = a.low;
        low += 0x9e3779b9u;
        high += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// What is drawn; the order of torchassay.philox.Purpose. No two share a counter.
enum class Purpose : uint32_t { kLogitNoise, kFeatureNoise, kPicks, kCorruptions, kWeightedDraws };

// Block n of four words of a row's draw. Of the row's id the low 56 bits count.
TORCHASSAY_HD RandomWords random_words(uint64_t seed, Purpose purpose, int64_t row, uint32_t draw, uint32_t n) {
    const uint32_t high = uint32_t(uint64_t(row) >> 32) & 0xffffffu;
    return philox4x32({{n, draw, uint32_t(row), high | uint32_t(purpose) << 24}}, seed);
}

// In [0, 1), every value a multiple of 2^-24.
TORCHASSAY_HD float uniform_of(uint32_t word) { return float(int32_t(word >> 8)) * 0x1p-24f; }

// The number that decides whether a row is picked in a step.
TORCHASSAY_HD float pick_uniform(uint64_t seed, int64_t row, uint32_t step) {
    return uniform_of(random_words(seed, Purpose::kPicks, row, step, 0).word[0]);
}

}  // namespace torchassay
