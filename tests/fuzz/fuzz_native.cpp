// libFuzzer on every native entry point of the CPU: csrc/api.h.
#include "fuzz_native.h"

#include <string>

using namespace torchassay;

namespace {

// One of the instruction sets of this machine: "avx512,avx2,baseline".
void choose_isa(Input& input) {
    static const std::string all = cpu_isas();
    size_t begin = 0;
    for (int64_t skip = input.integer(0, 2); skip > 0 && all.find(',', begin) != std::string::npos; --skip)
        begin = all.find(',', begin) + 1;
    EXPECT(set_cpu_isa(all.substr(begin, all.find(',', begin) - begin).c_str()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using Target = void (*)(Input&, int);
    static const Target kTargets[] = {fuzz_rows,  fuzz_options, fuzz_states,   fuzz_draws,
                                      fuzz_heads, fuzz_window,  fuzz_sum_tree, fuzz_random};
    Input input(data, size);
    choose_isa(input);
    const Target target = kTargets[input.byte() % 8];
    target(input, int(input.integer(1, 3)));
    return 0;
}
