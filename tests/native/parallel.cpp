// Every native entry point on threads: the pool by itself, callers side by side, and a forked child. What a sanitizer
// watches. There is no OpenMP in this program, so the loops run on the pool of csrc/cpu/threads.cpp.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "calls.h"
#include "cpu/threads.h"

namespace torchassay {
namespace {

constexpr int kCallers = 3;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "parallel: %s\n", what.c_str());
    std::exit(3);
}

// Short loops, one after the other: every unit is worked on once, and the caller sees what was written.
void many_loops(int rounds) {
    std::vector<int> done(64);
    for (int round = 0; round < rounds; ++round) {
        std::fill(done.begin(), done.end(), 0);
        parallel_for(64, 1 + round % 3, 2 + round % 3, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) ++done[i];
        });
        for (const int times : done)
            if (times != 1) fail("a unit was worked on " + std::to_string(times) + " times");
    }
}

// What every call writes.
std::vector<std::vector<Bytes>> outputs(int threads) {
    const Calls calls;
    std::vector<std::vector<Bytes>> found;
    for (const Call& call : calls.list) {
        call.run(threads);
        found.emplace_back();
        for (const Bytes* output : call.outputs) found.back().push_back(*output);
    }
    return found;
}

void compare(const std::vector<std::vector<Bytes>>& expected, int threads) {
    const auto found = outputs(threads);
    for (size_t i = 0; i < found.size(); ++i)
        if (found[i] != expected[i]) fail(Calls().list[i].name + " differs on " + std::to_string(threads) + " threads");
}

void side_by_side(const std::function<void(int)>& body) {
    std::vector<std::thread> callers;
    for (int i = 0; i < kCallers; ++i) callers.emplace_back(body, i);
    for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace torchassay

int main() {
    using namespace torchassay;
    many_loops(2000);
    side_by_side([](int) { many_loops(500); });
    const auto expected = outputs(1);
    side_by_side([&](int caller) { compare(expected, 2 + caller); });
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);  // a hang is a failure
        many_loops(200);
        std::_Exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    if (status != 0) fail("the forked child ended with status " + std::to_string(status));
    std::printf("%zu calls\n", expected.size());
}
