// The Python module torchassay._native: raw pointers in, nothing checked here. The only file that knows Python.
#include <pybind11/pybind11.h>

#include <array>
#include <stdexcept>
#include <string>

#include "api.h"

namespace py = pybind11;
using namespace torchassay;

namespace {

const void* pointer(uintptr_t address) { return reinterpret_cast<const void*>(address); }

std::array<void*, kSlots> slots_of(const py::sequence& out) {
    std::array<void*, kSlots> slots;
    for (int i = 0; i < kSlots; ++i) slots[i] = reinterpret_cast<void*>(out[i].cast<uintptr_t>());
    return slots;
}

int64_t scores(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
               int64_t inner_stride, int64_t class_stride, uintptr_t target, bool wide, int64_t ignore_index,
               const py::sequence& out, int threads) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride, class_stride};
    const auto slots = slots_of(out);
    py::gil_scoped_release release;
    return row_scores(rows, Targets{pointer(target), wide, ignore_index}, slots.data(), threads);
}

void grads(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
           int64_t inner_stride, int64_t class_stride, uintptr_t target, bool wide, int64_t ignore_index,
           uintptr_t stats, uintptr_t grad_loss, int64_t loss_stride, uintptr_t grad_entropy, int64_t entropy_stride,
           uintptr_t out, int threads) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride, class_stride};
    py::gil_scoped_release release;
    row_grads(rows, Targets{pointer(target), wide, ignore_index}, pointer(stats), {pointer(grad_loss), loss_stride},
              {pointer(grad_entropy), entropy_stride}, reinterpret_cast<void*>(out), threads);
}

int64_t scores_with_options(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes,
                            int64_t outer_stride, int64_t inner_stride, int64_t class_stride, uintptr_t target,
                            bool wide, int64_t ignore_index, uintptr_t weight, uintptr_t probabilities,
                            double label_smoothing, uintptr_t temperatures, double temperature, double softcap,
                            double z_loss, const py::sequence& out, int threads) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride, class_stride};
    const Options options{
        pointer(weight), pointer(probabilities), {pointer(temperatures), temperature}, label_smoothing, softcap,
        z_loss};
    const auto slots = slots_of(out);
    py::gil_scoped_release release;
    return option_scores(rows, Targets{pointer(target), wide, ignore_index}, options, slots.data(), threads);
}

void grads_with_options(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
                        int64_t inner_stride, int64_t class_stride, uintptr_t target, bool wide, int64_t ignore_index,
                        uintptr_t weight, uintptr_t probabilities, double label_smoothing, uintptr_t temperatures,
                        double temperature, double softcap, double z_loss, uintptr_t stats, uintptr_t grad_loss,
                        int64_t loss_stride, uintptr_t grad_entropy, int64_t entropy_stride, uintptr_t out,
                        int64_t first, int64_t total, int threads) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride, class_stride};
    const Options options{
        pointer(weight), pointer(probabilities), {pointer(temperatures), temperature}, label_smoothing, softcap,
        z_loss};
    py::gil_scoped_release release;
    option_grads(rows, Targets{pointer(target), wide, ignore_index, first, total}, options, pointer(stats),
                 {pointer(grad_loss), loss_stride}, {pointer(grad_entropy), entropy_stride},
                 reinterpret_cast<void*>(out), threads);
}

States states_of(uintptr_t numbers, uintptr_t k, int64_t parts, int64_t count, bool wide, bool smoothed) {
    return {reinterpret_cast<void*>(numbers), reinterpret_cast<int64_t*>(k), parts, count, wide, smoothed};
}

void states(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
            int64_t inner_stride, int64_t class_stride, uintptr_t target, bool wide, int64_t ignore_index,
            uintptr_t weight, uintptr_t probabilities, double label_smoothing, uintptr_t temperatures,
            double temperature, double softcap, double z_loss, int64_t first, int64_t total, uintptr_t numbers,
            uintptr_t k, int threads) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride, class_stride};
    const Options options{
        pointer(weight), pointer(probabilities), {pointer(temperatures), temperature}, label_smoothing, softcap,
        z_loss};
    const States out = states_of(numbers, k, 1, rows.count(), rows.dtype == Dtype::kFloat64, label_smoothing > 0);
    py::gil_scoped_release release;
    row_states(rows, Targets{pointer(target), wide, ignore_index, first, total}, options, out, threads);
}

void merged(uintptr_t numbers, uintptr_t k, int64_t parts, int64_t count, bool wide, bool smoothed,
            uintptr_t temperatures, double temperature, double softcap, uintptr_t out, uintptr_t k_out, int threads) {
    const Options options{nullptr, nullptr, {pointer(temperatures), temperature}, 0, softcap, 0};
    py::gil_scoped_release release;
    merge_states(states_of(numbers, k, parts, count, wide, smoothed), options,
                 states_of(out, k_out, 1, count, wide, smoothed), threads);
}

int64_t finished(uintptr_t numbers, uintptr_t k, int64_t parts, int64_t count, bool wide, bool smoothed,
                 uintptr_t target, bool wide_target, int64_t ignore_index, int64_t total, uintptr_t weight,
                 double label_smoothing, uintptr_t temperatures, double temperature, double softcap, double z_loss,
                 const py::sequence& out, int threads) {
    const Options options{pointer(weight), nullptr, {pointer(temperatures), temperature},
                          label_smoothing, softcap, z_loss};
    const auto slots = slots_of(out);
    py::gil_scoped_release release;
    return finish_states(states_of(numbers, k, parts, count, wide, smoothed),
                         Targets{pointer(target), wide_target, ignore_index, 0, total}, options, slots.data(), threads);
}

HeadTask head_task(uintptr_t data, int dtype, int64_t rows, int64_t outputs, int64_t stride, uintptr_t target,
                   int64_t target_stride, uintptr_t pos_weight, int head, double delta, const py::sequence& out) {
    HeadTask task{{pointer(data), Dtype(dtype), 1, rows, outputs, 0, stride},
                  pointer(target),
                  target_stride,
                  pointer(pos_weight),
                  Head(head),
                  delta,
                  {}};
    for (int i = 0; i <= kGradNorm; ++i) task.out[i] = reinterpret_cast<void*>(out[i].cast<uintptr_t>());
    return task;
}

void heads(uintptr_t data, int dtype, int64_t rows, int64_t outputs, int64_t stride, uintptr_t target,
           int64_t target_stride, uintptr_t pos_weight, int head, double delta, const py::sequence& out, int threads) {
    const HeadTask task =
        head_task(data, dtype, rows, outputs, stride, target, target_stride, pos_weight, head, delta, out);
    py::gil_scoped_release release;
    head_scores(task, threads);
}

void draw(uintptr_t row_id, int64_t count, uintptr_t seed_data, int64_t seed, uint32_t step, uintptr_t out) {
    py::gil_scoped_release release;
    uniforms(static_cast<const int64_t*>(pointer(row_id)), count,
             {static_cast<const int64_t*>(pointer(seed_data)), seed}, step, reinterpret_cast<float*>(out));
}

void numbers(uintptr_t row_id, int64_t rows, uintptr_t seed_data, int64_t seed, int purpose, uint32_t draw,
             int64_t columns, bool uniform, uintptr_t out, int threads) {
    py::gil_scoped_release release;
    normals(static_cast<const int64_t*>(pointer(row_id)), rows, {static_cast<const int64_t*>(pointer(seed_data)), seed},
            purpose, draw, columns, uniform, reinterpret_cast<float*>(out), threads);
}

std::array<void*, kDrawSlots> draw_slots_of(const py::sequence& out) {
    std::array<void*, kDrawSlots> slots;
    for (int i = 0; i < kDrawSlots; ++i) slots[i] = reinterpret_cast<void*>(out[i].cast<uintptr_t>());
    return slots;
}

void several(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
             int64_t inner_stride, int64_t count, int64_t stride, uintptr_t top, uintptr_t std_data, double std,
             uintptr_t scale_data, double scale, uintptr_t row_id, uintptr_t seed_data, int64_t seed,
             const py::sequence& out, int threads) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride};
    const Draws draws{count,
                      stride,
                      pointer(top),
                      {pointer(std_data), std},
                      {pointer(scale_data), scale},
                      static_cast<const int64_t*>(pointer(row_id)),
                      {static_cast<const int64_t*>(pointer(seed_data)), seed}};
    const auto slots = draw_slots_of(out);
    py::gil_scoped_release release;
    draw_scores(rows, draws, slots.data(), threads);
}

Window window_of(uintptr_t data, int64_t capacity, uintptr_t total) {
    return {static_cast<const float*>(pointer(data)), capacity, static_cast<const int64_t*>(pointer(total))};
}

void share(uintptr_t window, int64_t capacity, uintptr_t total, uintptr_t values, int64_t stride, int64_t count,
           bool midrank, uintptr_t out, int threads) {
    py::gil_scoped_release release;
    cdf(window_of(window, capacity, total), {static_cast<const float*>(pointer(values)), stride, count}, midrank,
        reinterpret_cast<float*>(out), threads);
}

void chance(uintptr_t window, int64_t capacity, uintptr_t total, uintptr_t values, int64_t count, uintptr_t mask,
            bool update, bool midrank, float beta, float p_min, uintptr_t out, int threads) {
    py::gil_scoped_release release;
    select_probability(reinterpret_cast<float*>(window), capacity, reinterpret_cast<int64_t*>(total),
                       {static_cast<const float*>(pointer(values)), 1, count},
                       {static_cast<const uint8_t*>(pointer(mask)), update, midrank, beta, p_min},
                       reinterpret_cast<float*>(out), threads);
}

SumTree tree_of(uintptr_t leaves, uintptr_t sums, int64_t n) {
    return {reinterpret_cast<double*>(leaves), reinterpret_cast<double*>(sums), n};
}

std::pair<int64_t, int64_t> tree_built(uintptr_t leaves, uintptr_t sums, int64_t n, int threads) {
    py::gil_scoped_release release;
    const SumTreeBuilt built = sum_tree_build(tree_of(leaves, sums, n), threads);
    return {built.wrong, built.positive};
}

int64_t tree_updated(uintptr_t leaves, uintptr_t sums, int64_t n, uintptr_t index, uintptr_t weights, int64_t count) {
    py::gil_scoped_release release;
    return sum_tree_update(tree_of(leaves, sums, n), static_cast<const int64_t*>(pointer(index)),
                           static_cast<const double*>(pointer(weights)), count);
}

void tree_sampled(uintptr_t leaves, uintptr_t sums, int64_t n, uint64_t seed, int64_t first, int64_t count,
                  uintptr_t out, int threads) {
    py::gil_scoped_release release;
    sum_tree_sample(tree_of(leaves, sums, n), seed, first, count, reinterpret_cast<int64_t*>(out), threads);
}

#ifdef TORCHASSAY_CUDA
int64_t cuda_workspace(int dtype, int64_t rows, int64_t classes, int device) {
    return cuda::row_scores_workspace(Rows{nullptr, Dtype(dtype), 1, rows, classes, 0, classes}, device);
}

void cuda_scores(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
                 int64_t inner_stride, uintptr_t target, bool wide, int64_t ignore_index, const py::sequence& out,
                 uintptr_t workspace, int device, uintptr_t stream) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride};
    const auto slots = slots_of(out);
    py::gil_scoped_release release;
    cuda::row_scores(rows, Targets{pointer(target), wide, ignore_index}, slots.data(),
                     reinterpret_cast<void*>(workspace), {device, reinterpret_cast<void*>(stream)});
}

void cuda_grads(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
                int64_t inner_stride, uintptr_t target, bool wide, int64_t ignore_index, uintptr_t stats,
                uintptr_t grad_loss, int64_t loss_stride, uintptr_t grad_entropy, int64_t entropy_stride, uintptr_t out,
                int device, uintptr_t stream) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride};
    py::gil_scoped_release release;
    cuda::row_grads(rows, Targets{pointer(target), wide, ignore_index}, pointer(stats),
                    {pointer(grad_loss), loss_stride}, {pointer(grad_entropy), entropy_stride},
                    reinterpret_cast<void*>(out), {device, reinterpret_cast<void*>(stream)});
}

int64_t cuda_option_workspace(int dtype, int64_t rows, int64_t classes, int device) {
    return cuda::option_scores_workspace(Rows{nullptr, Dtype(dtype), 1, rows, classes, 0, classes}, device);
}

void cuda_scores_with_options(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes,
                              int64_t outer_stride, int64_t inner_stride, uintptr_t target, bool wide,
                              int64_t ignore_index, uintptr_t weight, uintptr_t probabilities, double label_smoothing,
                              uintptr_t temperature_data, double temperature, double softcap, double z_loss,
                              const py::sequence& out, uintptr_t workspace, int device, uintptr_t stream) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride};
    const Number by_row{pointer(temperature_data), temperature};
    const auto slots = slots_of(out);
    py::gil_scoped_release release;
    cuda::option_scores(rows, Targets{pointer(target), wide, ignore_index},
                        {pointer(weight), pointer(probabilities), by_row, label_smoothing, softcap, z_loss},
                        slots.data(), reinterpret_cast<void*>(workspace), {device, reinterpret_cast<void*>(stream)});
}

void cuda_grads_with_options(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes,
                             int64_t outer_stride, int64_t inner_stride, uintptr_t target, bool wide,
                             int64_t ignore_index, uintptr_t weight, uintptr_t probabilities, double label_smoothing,
                             uintptr_t temperature_data, double temperature, double softcap, double z_loss,
                             uintptr_t stats, uintptr_t grad_loss, int64_t loss_stride, uintptr_t grad_entropy,
                             int64_t entropy_stride, uintptr_t out, int64_t first, int64_t total, int device,
                             uintptr_t stream) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride};
    const Number by_row{pointer(temperature_data), temperature};
    py::gil_scoped_release release;
    cuda::option_grads(rows, Targets{pointer(target), wide, ignore_index, first, total},
                       {pointer(weight), pointer(probabilities), by_row, label_smoothing, softcap, z_loss},
                       pointer(stats), {pointer(grad_loss), loss_stride}, {pointer(grad_entropy), entropy_stride},
                       reinterpret_cast<void*>(out), {device, reinterpret_cast<void*>(stream)});
}

int64_t cuda_states_workspace(int dtype, int64_t rows, int64_t classes, int device) {
    return cuda::row_states_workspace(Rows{nullptr, Dtype(dtype), 1, rows, classes, 0, classes}, device);
}

void cuda_states(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
                 int64_t inner_stride, uintptr_t target, bool wide, int64_t ignore_index, uintptr_t weight,
                 uintptr_t probabilities, double label_smoothing, uintptr_t temperature_data, double temperature,
                 double softcap, double z_loss, int64_t first, int64_t total, uintptr_t numbers, uintptr_t k,
                 uintptr_t workspace, int device, uintptr_t stream) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride};
    const Number by_row{pointer(temperature_data), temperature};
    py::gil_scoped_release release;
    cuda::row_states(rows, Targets{pointer(target), wide, ignore_index, first, total},
                     {pointer(weight), pointer(probabilities), by_row, label_smoothing, softcap, z_loss},
                     states_of(numbers, k, 1, rows.count(), false, label_smoothing > 0),
                     reinterpret_cast<void*>(workspace), {device, reinterpret_cast<void*>(stream)});
}

void cuda_merge(uintptr_t numbers, uintptr_t k, int64_t parts, int64_t count, bool float64, bool smoothed,
                uintptr_t temperature_data, double temperature, double softcap, uintptr_t out, uintptr_t out_k,
                int device, uintptr_t stream) {
    Options options{};
    options.temperature = {pointer(temperature_data), temperature}, options.softcap = softcap;
    py::gil_scoped_release release;
    cuda::merge_states(states_of(numbers, k, parts, count, float64, smoothed), options,
                       states_of(out, out_k, 1, count, float64, smoothed), {device, reinterpret_cast<void*>(stream)});
}

void cuda_finish(uintptr_t numbers, uintptr_t k, int64_t parts, int64_t count, bool float64, bool smoothed,
                 uintptr_t target, bool wide, int64_t ignore_index, int64_t total, uintptr_t weight,
                 double label_smoothing, uintptr_t temperature_data, double temperature, double softcap, double z_loss,
                 const py::sequence& out, int device, uintptr_t stream) {
    const Number by_row{pointer(temperature_data), temperature};
    const auto slots = slots_of(out);
    py::gil_scoped_release release;
    cuda::finish_states(states_of(numbers, k, parts, count, float64, smoothed),
                        Targets{pointer(target), wide, ignore_index, 0, total},
                        {pointer(weight), nullptr, by_row, label_smoothing, softcap, z_loss}, slots.data(),
                        {device, reinterpret_cast<void*>(stream)});
}

void cuda_heads(uintptr_t data, int dtype, int64_t rows, int64_t outputs, int64_t stride, uintptr_t target,
                int64_t target_stride, uintptr_t pos_weight, int head, double delta, const py::sequence& out,
                int device, uintptr_t stream) {
    const HeadTask task =
        head_task(data, dtype, rows, outputs, stride, target, target_stride, pos_weight, head, delta, out);
    py::gil_scoped_release release;
    cuda::head_scores(task, {device, reinterpret_cast<void*>(stream)});
}

void cuda_draw(uintptr_t row_id, int64_t count, uintptr_t seed_data, int64_t seed, uint32_t step, uintptr_t out,
               int device, uintptr_t stream) {
    py::gil_scoped_release release;
    cuda::uniforms(static_cast<const int64_t*>(pointer(row_id)), count,
                   {static_cast<const int64_t*>(pointer(seed_data)), seed}, step, reinterpret_cast<float*>(out),
                   {device, reinterpret_cast<void*>(stream)});
}

void cuda_numbers(uintptr_t row_id, int64_t rows, uintptr_t seed_data, int64_t seed, int purpose, uint32_t draw,
                  int64_t columns, bool uniform, uintptr_t out, int device, uintptr_t stream) {
    py::gil_scoped_release release;
    cuda::normals(static_cast<const int64_t*>(pointer(row_id)), rows,
                  {static_cast<const int64_t*>(pointer(seed_data)), seed}, purpose, draw, columns, uniform,
                  reinterpret_cast<float*>(out), {device, reinterpret_cast<void*>(stream)});
}

int64_t cuda_draws_workspace(int dtype, int64_t rows, int64_t classes, int64_t draws, int device) {
    return cuda::draw_scores_workspace(Rows{nullptr, Dtype(dtype), 1, rows, classes, 0, classes},
                                       Draws{draws, 0, nullptr, {}, {}, nullptr, {}}, device);
}

void cuda_draws(uintptr_t data, int dtype, int64_t outer, int64_t inner, int64_t classes, int64_t outer_stride,
                int64_t inner_stride, int64_t count, int64_t stride, uintptr_t top, uintptr_t std, double std_number,
                uintptr_t scale, double scale_number, uintptr_t row_id, uintptr_t seed_data, int64_t seed,
                const py::sequence& out, uintptr_t workspace, int device, uintptr_t stream) {
    const Rows rows{pointer(data), Dtype(dtype), outer, inner, classes, outer_stride, inner_stride};
    const Draws draws{count,
                      stride,
                      pointer(top),
                      {pointer(std), std_number},
                      {pointer(scale), scale_number},
                      static_cast<const int64_t*>(pointer(row_id)),
                      {static_cast<const int64_t*>(pointer(seed_data)), seed}};
    void* slots[kDrawSlots];
    for (int i = 0; i < kDrawSlots; ++i) slots[i] = reinterpret_cast<void*>(out[i].cast<uintptr_t>());
    py::gil_scoped_release release;
    cuda::draw_scores(rows, draws, slots, reinterpret_cast<void*>(workspace),
                      {device, reinterpret_cast<void*>(stream)});
}

void cuda_share(uintptr_t window, int64_t capacity, uintptr_t total, uintptr_t values, int64_t stride, int64_t count,
                bool midrank, uintptr_t out, int device, uintptr_t stream) {
    py::gil_scoped_release release;
    cuda::cdf(window_of(window, capacity, total), {static_cast<const float*>(pointer(values)), stride, count}, midrank,
              reinterpret_cast<float*>(out), {device, reinterpret_cast<void*>(stream)});
}
#endif

}  // namespace

PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
    module.doc() = "C++ and CUDA kernels of torchassay";
    module.def("row_scores", &scores);
    module.def("row_grads", &grads);
    module.def("option_scores", &scores_with_options);
    module.def("option_grads", &grads_with_options);
    module.def("row_states", &states);
    module.def("merge_states", &merged);
    module.def("finish_states", &finished);
    module.def("head_scores", &heads);
    module.def("uniforms", &draw);
    module.def("normals", &numbers);
    module.def("draw_scores", &several);
    module.def("cdf", &share);
    module.def("select_probability", &chance);
    module.def("sum_tree_build", &tree_built);
    module.def("sum_tree_update", &tree_updated);
    module.def("sum_tree_sample", &tree_sampled);
#ifdef TORCHASSAY_CUDA
    module.attr("cuda") = true;  // built with the CUDA kernels; a GPU may still be missing
    module.def("cuda_row_scores", &cuda_scores);
    module.def("cuda_row_grads", &cuda_grads);
    module.def("cuda_head_scores", &cuda_heads);
    module.def("cuda_uniforms", &cuda_draw);
    module.def("cuda_normals", &cuda_numbers);
    module.def("cuda_draw_scores", &cuda_draws);
    module.def("cuda_draw_scores_workspace", &cuda_draws_workspace);
    module.def("cuda_cdf", &cuda_share);
    module.def("cuda_row_scores_workspace", &cuda_workspace);
    module.def("cuda_option_scores", &cuda_scores_with_options);
    module.def("cuda_option_grads", &cuda_grads_with_options);
    module.def("cuda_option_scores_workspace", &cuda_option_workspace);
    module.def("cuda_row_states", &cuda_states);
    module.def("cuda_row_states_workspace", &cuda_states_workspace);
    module.def("cuda_merge_states", &cuda_merge);
    module.def("cuda_finish_states", &cuda_finish);
#else
    module.attr("cuda") = false;
#endif
    module.def("cpu_isas", [] { return std::string(cpu_isas()); });
    module.def("cpu_isa", [] { return std::string(cpu_isa()); });
    module.def("set_cpu_isa", [](const std::string& name) {
        if (!set_cpu_isa(name.c_str()))
            throw std::invalid_argument("instruction set must be one of " + std::string(cpu_isas()) + ", got " + name);
    });
}
