// Counts the instructions of every call on one thread, under `valgrind --tool=callgrind --collect-atstart=no`.
#include <valgrind/callgrind.h>

#include <cstdio>

#include "calls.h"

int main(int argc, char** argv) {
    using namespace torchassay;
    std::deque<std::string> names;  // valgrind reads a name after the line that gives it
    for (int i = 1; i < argc; ++i) {
        if (!set_cpu_isa(argv[i])) return std::fprintf(stderr, "counts: no %s here\n", argv[i]), 3;
        const Calls calls;
        for (const Call& call : calls.list) {
            names.push_back(std::string(argv[i]) + "|" + call.name);
            call.run(1);  // memory that a thread keeps is there now
            CALLGRIND_TOGGLE_COLLECT;
            call.run(1);
            CALLGRIND_TOGGLE_COLLECT;
            CALLGRIND_DUMP_STATS_AT(names.back().c_str());
        }
    }
}
