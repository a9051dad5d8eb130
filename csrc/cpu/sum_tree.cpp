// Weighted draws from a tree of sums; torchassay/reference/sum_tree.py says what every bit of them is.
//
// A node holds the sums of 16 children, two cache lines: far below, a draw or an update waits for memory once a level,
// so many go down side by side, and what each needs next is fetched meanwhile.
#include <atomic>
#include <cfenv>
#include <cstring>

#include "../api.h"
#include "../philox.h"
#include "threads.h"

namespace torchassay {
namespace {

constexpr int kChildren = 16;
constexpr int kLevels = 17;                // of 2^63 leaves and their sums
constexpr int kGroup = 32;                 // draws that go down side by side
constexpr int64_t kBatch = 512;            // updates likewise
constexpr int64_t kBuildChunk = 1 << 14;   // nodes
constexpr int64_t kThreadedDraws = 16384;  // fewer gain little, and a thread whose core is busy costs milliseconds

// Gradual underflow and rounding to nearest, whatever the process has set: a sum of subnormal numbers is not 0.
class Arithmetic {
public:
    Arithmetic() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~Arithmetic() { std::fesetenv(&before_); }

private:
    std::fenv_t before_;
};

struct Level {
    double* data;
    int64_t size;

    // The 16 numbers of a node, in place or with zeros behind the last leaf.
    inline __attribute__((always_inline)) const double* children(int64_t node, double (&room)[kChildren]) const {
        const int64_t first = node * kChildren;
        if (first + kChildren <= size) return data + first;
        std::memset(room, 0, sizeof room);
        std::memcpy(room, data + first, (size - first) * sizeof(double));
        return room;
    }
    void prefetch(int64_t node) const {
        const char* first = reinterpret_cast<const char*>(data + node * kChildren);
        __builtin_prefetch(first);
        __builtin_prefetch(first + 64);
    }
};

struct Levels {
    Level level[kLevels];  // the leaves first
    int count = 1;

    explicit Levels(const SumTree& tree) {
        level[0] = {tree.leaves, tree.n};
        double* sums = tree.sums;
        int64_t nodes = tree.n;
        do {
            nodes = (nodes + kChildren - 1) / kChildren;
            const int64_t size = (nodes + kChildren - 1) / kChildren * kChildren;
            level[count++] = {sums, size};
            sums += size;
        } while (nodes > kChildren);
    }
};

inline __attribute__((always_inline)) double sum(const double* x) {
    double eight[8], four[4];
    for (int i = 0; i < 8; ++i) eight[i] = x[i] + x[i + 8];
    for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// The child in whose part of the node's sum the random number falls. One of weight 0 has none: what is taken is the
// first whose running sum is above, and `at` stays below the last of them.
inline __attribute__((always_inline)) int pick(const double* x, double uniform) {
    double upto[kChildren], running = 0;
    for (int i = 0; i < kChildren; ++i) upto[i] = running += x[i];
    int64_t bits;
    std::memcpy(&bits, &running, 8);
    --bits;
    double below;  // the next number below the sum
    std::memcpy(&below, &bits, 8);
    const double scaled = uniform * running, at = scaled < below ? scaled : below;
    int child = 0;
    for (int i = 0; i < kChildren; ++i) child += upto[i] <= at;
    return child;
}

double uniform_of(uint32_t low, uint32_t high) { return double((uint64_t(high) << 32 | low) >> 11) * 0x1p-53; }

void resum(const Level& below, const Level& level, int64_t node) {
    double room[kChildren];
    level.data[node] = sum(below.children(node, room));
}

}  // namespace

SumTreeBuilt sum_tree_build(const SumTree& tree, int threads) {
    const Levels levels(tree);
    std::atomic<int64_t> wrong{tree.n}, positive{0};
    for (int l = 1; l < levels.count; ++l) {
        const Level below = levels.level[l - 1], level = levels.level[l];
        const int64_t nodes = (below.size + kChildren - 1) / kChildren;
        parallel_for(nodes, kBuildChunk, threads, [&](int64_t begin, int64_t end) {
            const Arithmetic arithmetic;
            for (int64_t node = begin; node < end; ++node) resum(below, level, node);
            if (l > 1) return;
            const int64_t last = end * kChildren < tree.n ? end * kChildren : tree.n;
            int64_t found = 0, right = 0;
            for (int64_t i = begin * kChildren; i < last; ++i) {
                found += tree.leaves[i] > 0;
                right += tree.leaves[i] >= 0 && tree.leaves[i] <= __DBL_MAX__;
            }
            positive += found;
            if (right == last - begin * kChildren) return;
            int64_t first = begin * kChildren, known = wrong;
            while (tree.leaves[first] >= 0 && tree.leaves[first] <= __DBL_MAX__) ++first;
            while (first < known && !wrong.compare_exchange_weak(known, first)) continue;
        });
        for (int64_t node = nodes; node < level.size; ++node) level.data[node] = 0;
    }
    return {wrong == tree.n ? -1 : wrong.load(), positive};
}

int64_t sum_tree_update(const SumTree& tree, const int64_t* index, const double* weights, int64_t count) {
    const Levels levels(tree);
    const Arithmetic arithmetic;
    const auto whole = [&](int l) { return levels.level[l].size <= count; };  // summed anew in order, each node once
    int64_t gained = 0;
    for (int64_t first = 0; first < count; first += kBatch) {
        const int64_t last = first + kBatch < count ? first + kBatch : count;
        for (int64_t i = first; i < last; ++i) {
            levels.level[0].prefetch(index[i] / kChildren);
            levels.level[1].prefetch(index[i] / kChildren / kChildren);
        }
        for (int64_t i = first; i < last; ++i) {
            double& leaf = tree.leaves[index[i]];
            gained += (weights[i] > 0) - (leaf > 0);
            leaf = weights[i];
        }
        if (whole(1)) continue;
        for (int64_t i = first; i < last; ++i) resum(levels.level[0], levels.level[1], index[i] / kChildren);
    }
    int64_t width = kChildren;
    for (int l = 1; l < levels.count; ++l, width *= kChildren) {
        const Level below = levels.level[l - 1], level = levels.level[l];
        if (whole(l))
            for (int64_t node = 0; node * kChildren < below.size; ++node) resum(below, level, node);
        else if (l > 1)
            for (int64_t i = 0; i < count; ++i) resum(below, level, index[i] / width);
    }
    return gained;
}

void sum_tree_sample(const SumTree& tree, uint64_t seed, int64_t first, int64_t count, int64_t* out, int threads) {
    const Levels levels(tree);
    parallel_for(count, 64 * kGroup, count < kThreadedDraws ? 1 : threads, [&](int64_t begin, int64_t end) {
        const Arithmetic arithmetic;
        for (int64_t draw = begin; draw < end; draw += kGroup) {
            const int asked = int(end - draw < kGroup ? end - draw : kGroup);
            double uniform[kLevels + 1][kGroup];
            for (int n = 0; 2 * n < levels.count; ++n)
                for (int j = 0; j < asked; ++j) {
                    const RandomWords words =
                        random_words(seed, Purpose::kWeightedDraws, first + draw + j, 0, uint32_t(n));
                    uniform[2 * n][j] = uniform_of(words.word[0], words.word[1]);
                    uniform[2 * n + 1][j] = uniform_of(words.word[2], words.word[3]);
                }
            int64_t node[kGroup] = {};
            for (int depth = 0; depth < levels.count; ++depth) {
                const int l = levels.count - 1 - depth;
                const Level level = levels.level[l];
                for (int j = 0; j < asked; ++j) {
                    double room[kChildren];
                    const int64_t child = node[j] * kChildren + pick(level.children(node[j], room), uniform[depth][j]);
                    node[j] = child < level.size ? child : level.size - 1;  // beyond only if another thread updates
                    if (l > 0) levels.level[l - 1].prefetch(node[j]);
                }
            }
            for (int j = 0; j < asked; ++j) out[draw + j] = node[j];
        }
    });
}

}  // namespace torchassay
