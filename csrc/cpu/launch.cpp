// Which instruction set, how many threads, which cut: the native entry points of api.h on the CPU.
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace torchassay {

#define TORCHASSAY_DECLARE_KERNEL(result, name, parameters) result name##_any parameters;
#define TORCHASSAY_ENTRY(result, name, parameters) name##_any,
#define TORCHASSAY_DECLARE(isa)                                                              \
    namespace isa {                                                                          \
    extern const int kLanes;                                                                 \
    TORCHASSAY_EACH_KERNEL(TORCHASSAY_DECLARE_KERNEL)                                        \
    static const Kernels kernels = {#isa, kLanes, TORCHASSAY_EACH_KERNEL(TORCHASSAY_ENTRY)}; \
    }
#if defined(TORCHASSAY_X86)
TORCHASSAY_DECLARE(avx512)
TORCHASSAY_DECLARE(avx2)
#endif
TORCHASSAY_DECLARE(baseline)

namespace {

// Work below this many elements is not worth waking a thread for.
constexpr int64_t kThreadedElements = 32768;

std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(TORCHASSAY_X86)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (v3 && v4) found.push_back(&avx512::kernels);
    if (v3) found.push_back(&avx2::kernels);
#endif
    found.push_back(&baseline::kernels);
    return found;
}

const Kernels* chosen = usable().front();

int threads_for(int64_t elements, int threads) { return elements < kThreadedElements || threads < 1 ? 1 : threads; }

// Rows a thread takes at once: whole groups of lanes, about 16k elements, and four or more turns for every thread.
int64_t rows_at_once(int64_t rows, int64_t classes, int threads, int lanes) {
    int64_t chunk = 16384 / classes;
    if (chunk > rows / (4 * threads)) chunk = rows / (4 * threads);
    chunk = chunk / lanes * lanes;
    return chunk > lanes ? chunk : lanes;
}

}  // namespace

const char* cpu_isas() {
    static const std::string names = [] {
        std::string all;
        for (const Kernels* kernels : usable()) all += (all.empty() ? "" : ",") + std::string(kernels->isa);
        return all;
    }();
    return names.c_str();
}

const char* cpu_isa() { return chosen->isa; }

bool set_cpu_isa(const char* name) {
    for (const Kernels* kernels : usable())
        if (!std::strcmp(kernels->isa, name)) {
            chosen = kernels;
            return true;
        }
    return false;
}

int64_t row_scores(const Rows& rows, const Targets& targets, void* const out[kSlots], int threads) {
    const Kernels* kernels = chosen;
    ScoreJob job{rows, targets, out, {INT64_MAX}};
    const int64_t count = rows.count(), segments = job.segments();
    threads = threads_for(count * rows.classes, threads);
    if (segments > 1 && count < int64_t(threads) * kernels->lanes) {
        // few long rows: threads over their segments, which are then joined in order
        std::vector<Segment> states(count * segments);
        parallel_for(count * segments, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) kernels->score_segment(job, i / segments, i % segments, &states[i]);
        });
        kernels->score_states(job, 0, count, states.data());
    } else {
        parallel_for(count, rows_at_once(count, rows.classes, threads, kernels->lanes), threads,
                     [&](int64_t begin, int64_t end) { kernels->score_rows(job, begin, end); });
    }
    const int64_t bad_row = job.bad_row.load();
    return bad_row == INT64_MAX ? -1 : bad_row;
}

void row_grads(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
               const Upstream& grad_entropy, void* out, int threads) {
    const Kernels* kernels = chosen;
    const GradJob job{rows, targets, stats, grad_loss, grad_entropy, out};
    const int64_t count = rows.count(), segments = (rows.classes + kSegment - 1) / kSegment;
    threads = threads_for(count * rows.classes, threads);
    int64_t chunk = 16384 / rows.classes * segments;
    if (chunk < 1) chunk = 1;
    parallel_for(count * segments, chunk, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t start = i % segments * kSegment, stop = start + kSegment;
            kernels->grad_columns(job, i / segments, start, stop < rows.classes ? stop : rows.classes);
        }
    });
}

void draw_scores(const Rows& rows, const Draws& draws, void* const out[kDrawSlots], int threads) {
    const Kernels* kernels = chosen;
    const uint64_t key = draws.seed.data ? *draws.seed.data : draws.seed.value;
    const DrawJob job{rows, draws, key, out};
    const int64_t count = rows.count(), numbers = rows.classes * draws.count;
    threads = threads_for(count * numbers, threads);
    const int together = rows.classes <= kInLanes ? kernels->lanes : 1;
    parallel_for(count, rows_at_once(count, numbers, threads, together), threads, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<char[]> scratch(new char[kernels->draw_scratch(job)]);
        kernels->draw_rows(job, begin, end, scratch.get());
    });
}

void normals(const int64_t* row_id, int64_t rows, const Seed& seed, int purpose, uint32_t draw, int64_t columns,
             bool uniform, float* out, int threads) {
    const Kernels* kernels = chosen;
    const uint64_t key = seed.data ? *seed.data : seed.value;
    const NormalJob job{row_id, key, uint32_t(purpose), draw, columns, uniform, out};
    threads = threads_for(rows * columns, threads);
    parallel_for(rows, rows_at_once(rows, columns, threads, 1), threads,
                 [&](int64_t begin, int64_t end) { kernels->normal_rows(job, begin, end); });
}

void head_scores(const HeadTask& task, int threads) {
    const Kernels* kernels = chosen;
    const int64_t count = task.rows.count(), outputs = task.rows.classes;
    threads = threads_for(count * outputs, threads);
    parallel_for(count, rows_at_once(count, outputs, threads, kernels->lanes), threads,
                 [&](int64_t begin, int64_t end) { kernels->score_heads(task, begin, end); });
}

}  // namespace torchassay
