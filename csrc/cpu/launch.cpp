// Which instruction set, how many threads, which cut: the native entry points of api.h on the CPU.
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#if defined(TORCHASSAY_X86)
#include <cpuid.h>
#endif

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

#if defined(TORCHASSAY_X86)
// __builtin_cpu_supports of clang 14 knows no f16c.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(TORCHASSAY_X86)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
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

// Rows whose classes stand apart go to a kernel by neighbours in memory.
void for_neighbours(const Rows& rows, int threads, const std::function<void(int64_t, int64_t)>& body) {
    const int64_t parts = rows.inner < 2 * kNeighbours ? 1 : rows.inner / kNeighbours;
    parallel_for(rows.outer * parts, 1 + 16384 / (kNeighbours * rows.classes), threads,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                         const int64_t start = i / parts * rows.inner, part = i % parts;
                         body(start + part * kNeighbours,
                              part + 1 < parts ? start + (part + 1) * kNeighbours : start + rows.inner);
                     }
                 });
}

// Rows along memory go to a kernel by segments, each as row, begin and end of its columns.
void for_segments(const Rows& rows, int threads, const std::function<void(int64_t, int64_t, int64_t)>& body) {
    const int64_t segments = (rows.classes + kSegment - 1) / kSegment;
    int64_t chunk = 16384 / rows.classes * segments;
    if (chunk < 1) chunk = 1;
    parallel_for(rows.count() * segments, chunk, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t start = i % segments * kSegment, stop = start + kSegment;
            body(i / segments, start, stop < rows.classes ? stop : rows.classes);
        }
    });
}

// Memory of the calling thread, which it keeps; from a cache line on.
void* scratch(size_t bytes) {
    thread_local std::unique_ptr<char[]> kept;
    thread_local size_t size = 0;
    if (size < bytes + 64) {
        kept.reset();  // two at once would be more than is needed
        kept.reset(new char[bytes + 64]);
        size = bytes + 64;
    }
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(kept.get()) + 63) & ~uintptr_t(63));
}

int64_t bad_row(const ScoreJob& job) {
    const int64_t first = job.bad_row.load();
    return first == INT64_MAX ? -1 : first;
}

// The scores of a job by its kernels: `score` rows, or a `segment` of a row whose states are then `joined`.
template <class Job>
int64_t score(Job& job, int threads, int lanes, void (*rows)(Job&, int64_t, int64_t, void*),
              void (*segment)(const Job&, int64_t, int64_t, Segment*),
              void (*joined)(Job&, int64_t, int64_t, const Segment*)) {
    const int64_t count = job.rows.count(), classes = job.rows.classes, segments = job.segments();
    if (job.rows.class_stride != 1) {
        for_neighbours(job.rows, threads,
                       [&](int64_t begin, int64_t end) { rows(job, begin, end, scratch(64 * (classes + 3))); });
    } else if (segments > 1 && count < int64_t(threads) * lanes) {
        // few long rows: threads over their segments, which are then joined in order
        std::vector<Segment> states(count * segments);
        parallel_for(count * segments, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) segment(job, i / segments, i % segments, &states[i]);
        });
        joined(job, 0, count, states.data());
    } else {
        parallel_for(count, rows_at_once(count, classes, threads, lanes), threads,
                     [&](int64_t begin, int64_t end) { rows(job, begin, end, nullptr); });
    }
    return bad_row(job);
}

// What the targets of all rows have in common: see OptionTerms.
template <class T>
std::vector<T> by_class(const Options& options, int64_t classes, double factor) {
    std::vector<T> found(classes + 4 * 64 / sizeof(T));
    const T* weight = static_cast<const T*>(options.weight);
    for (int64_t j = 0; j < classes; ++j) found[j] = T(factor * (weight ? double(weight[j]) : 1.0));
    return found;
}
struct ByClass {
    std::vector<float> narrow;
    std::vector<double> wide;
    ByClass(const Rows& rows, const Options& options, double factor) {
        if (rows.dtype == Dtype::kFloat64)
            wide = by_class<double>(options, rows.classes, factor);
        else
            narrow = by_class<float>(options, rows.classes, factor);
    }
    const void* data() const { return wide.empty() ? static_cast<const void*>(narrow.data()) : wide.data(); }
};

// Calls `call` with the options of a call as kernels read them.
template <class Call>
void with_terms(const Rows& rows, const Targets& targets, const Options& given, const Call& call) {
    OptionTerms terms{given, nullptr, nullptr, 1 / given.temperature.value, -2 / given.softcap};
    Options& options = terms.options;
    if (!targets.data && !options.probabilities) options.weight = nullptr, options.label_smoothing = options.z_loss = 0;
    std::unique_ptr<ByClass> spread, own;
    if (options.label_smoothing > 0 || options.probabilities) {
        const int64_t total = targets.total ? targets.total : rows.classes;
        spread = std::make_unique<ByClass>(rows, options, options.label_smoothing / double(total));
        terms.spread = spread->data();
    }
    if (options.probabilities) {
        own = std::make_unique<ByClass>(rows, options, 1 - options.label_smoothing);
        terms.own = own->data();
    }
    call(terms);
}

// The class of every row's top, marked where the slice has the label's, and what label smoothing gives it.
template <class T>
void complete_states(const StateJob& job) {
    const Targets& targets = job.targets;
    const int64_t classes = job.rows.classes, count = job.rows.count();
    const T* spread = job.to.smoothed ? static_cast<const T*>(job.spread) : nullptr;
    T* const numbers = static_cast<T*>(job.to.numbers);
    double sum = 0;
    for (int64_t j = 0; spread && j < classes; ++j) sum += double(spread[j]);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t column = job.to.k[i], k = targets.first + column;
        job.to.k[i] = targets.data && column_at(targets, classes, i) >= 0 ? ~k : k;
        if (!spread) continue;
        numbers[7 * count + i] = T(sum - double(spread[column]));
        numbers[9 * count + i] = spread[column];
    }
}

Rows rows_of(const States& states, int64_t classes) {
    return {nullptr, states.wide ? Dtype::kFloat64 : Dtype::kFloat32, 1, states.count, classes, 0, classes};
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
    threads = threads_for(rows.count() * rows.classes, threads);
    return score(job, threads, kernels->lanes, kernels->score_rows, kernels->score_segment, kernels->score_states);
}

void row_grads(const Rows& rows, const Targets& targets, const void* stats, const Upstream& grad_loss,
               const Upstream& grad_entropy, void* out, int threads) {
    const Kernels* kernels = chosen;
    const GradJob job{rows, targets, stats, grad_loss, grad_entropy, out};
    threads = threads_for(rows.count() * rows.classes, threads);
    if (rows.class_stride != 1)
        for_neighbours(rows, threads, [&](int64_t begin, int64_t end) { kernels->grad_neighbours(job, begin, end); });
    else
        for_segments(rows, threads,
                     [&](int64_t row, int64_t begin, int64_t end) { kernels->grad_columns(job, row, begin, end); });
}

int64_t option_scores(const Rows& rows, const Targets& targets, const Options& options, void* const out[kSlots],
                      int threads) {
    const Kernels* kernels = chosen;
    const int64_t count = rows.count(), classes = rows.classes;
    threads = threads_for(count * classes, threads);
    int64_t bad = -1;
    with_terms(rows, targets, options, [&](const OptionTerms& terms) {
        OptionJob job(rows, targets, out, terms);
        if (!terms.swept()) {
            bad = score(job, threads, kernels->lanes, kernels->option_rows, kernels->option_segment,
                        kernels->option_states);
            return;
        }
        const auto sweep = [&](int64_t begin, int64_t end) {
            // in lanes, or several rows along memory, each up to four vectors longer than its classes
            const int64_t width = rows.class_stride != 1 ? 64 : 8 * swept_at_once(classes);
            const int64_t bytes = 3 * (width > 64 ? width : 64) * (classes + 4 * 16);
            kernels->sweep_rows(job, begin, end, scratch(size_t(bytes)));
        };
        if (rows.class_stride != 1)
            for_neighbours(rows, threads, sweep);
        else
            parallel_for(count, rows_at_once(count, classes, threads, kernels->lanes), threads, sweep);
        bad = bad_row(job);
    });
    return bad;
}

void option_grads(const Rows& rows, const Targets& targets, const Options& options, const void* stats,
                  const Upstream& grad_loss, const Upstream& grad_entropy, void* out, int threads) {
    const Kernels* kernels = chosen;
    threads = threads_for(rows.count() * rows.classes, threads);
    with_terms(rows, targets, options, [&](const OptionTerms& terms) {
        const OptionGradJob job{{rows, targets, stats, grad_loss, grad_entropy, out}, terms};
        if (rows.class_stride != 1)
            for_neighbours(rows, threads,
                           [&](int64_t begin, int64_t end) { kernels->option_neighbours(job, begin, end); });
        else
            for_segments(rows, threads, [&](int64_t row, int64_t begin, int64_t end) {
                kernels->option_columns(job, row, begin, end);
            });
    });
}

void row_states(const Rows& rows, const Targets& targets, const Options& options, const States& to, int threads) {
    const Kernels* kernels = chosen;
    void* wanted[kSlots] = {};
    wanted[kEntropy] = wanted[kGradNorm] = to.numbers;
    wanted[kPrediction] = to.k;
    threads = threads_for(rows.count() * rows.classes, threads);
    with_terms(rows, targets, options, [&](const OptionTerms& terms) {
        StateJob job(rows, targets, wanted, terms, to);
        score(job, threads, kernels->lanes, kernels->state_rows, kernels->state_segment, kernels->state_states);
        if (to.wide)
            complete_states<double>(job);
        else
            complete_states<float>(job);
    });
}

void merge_states(const States& states, const Options& options, const States& to, int threads) {
    const Kernels* kernels = chosen;
    const Rows rows = rows_of(states, 1);
    with_terms(rows, {}, options, [&](const OptionTerms& terms) {
        const FinishJob job(rows, {}, nullptr, terms, states);
        parallel_for(states.count, 256, threads_for(states.count * states.parts * 64, threads),
                     [&](int64_t begin, int64_t end) { kernels->merge_states(job, to, begin, end); });
    });
}

int64_t finish_states(const States& states, const Targets& targets, const Options& options, void* const out[kSlots],
                      int threads) {
    const Kernels* kernels = chosen;
    const Rows rows = rows_of(states, targets.total);
    OptionTerms terms{options, nullptr, nullptr, 1 / options.temperature.value, -2 / options.softcap};
    FinishJob job(rows, targets, out, terms, states);
    parallel_for(states.count, 256, threads_for(states.count * states.parts * 64, threads),
                 [&](int64_t begin, int64_t end) { kernels->finish_states(job, begin, end); });
    return bad_row(job);
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
