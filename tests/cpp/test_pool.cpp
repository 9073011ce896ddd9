// The pool: every part is done once, what a part throws reaches the caller, and the pool works on afterwards.
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "threads/pool.hpp"

namespace {

int failures = 0;

void check(bool good, const char* what) {
    if (good) return;
    std::printf("FAILED: %s\n", what);
    ++failures;
}

// Runs as many parts as there are threads, each of which waits for the others: every thread has one.
template <class Run>
void on_each_thread(Run run) {
    const std::size_t parts = static_cast<std::size_t>(ecrec::threads::in_use());
    std::atomic<std::size_t> started{0};
    ecrec::threads::run_parts(parts, [&](std::size_t part) {
        ++started;
        while (started < parts) std::this_thread::yield();
        run(part);
    });
}

void test_every_part_runs_once() {
    std::vector<std::atomic<int>> runs(3);
    on_each_thread([&](std::size_t part) { ++runs[part]; });
    for (const auto& count : runs) check(count == 1, "a part ran once");
}

void test_what_parts_throw_reaches_the_caller(std::size_t first_that_throws) {
    std::atomic<int> ran{0};
    std::string caught;
    try {
        on_each_thread([&](std::size_t part) {
            ++ran;
            if (part >= first_that_throws) throw std::runtime_error("of a part");
        });
    } catch (const std::runtime_error& error) {
        caught = error.what();
    }
    check(caught == "of a part", "the caller catches it");
    check(ran == 3, "the other parts ran");
}

}  // namespace

int main() {
    check(ecrec::threads::use(3) == 3 && ecrec::threads::in_use() == 3, "three threads");
    for (int i = 0; i < 20; ++i) {
        test_every_part_runs_once();
        for (std::size_t first = 0; first < 3; ++first) test_what_parts_throw_reaches_the_caller(first);
    }
    check(ecrec::threads::use(1) == 1, "one thread");
    int alone = 0;
    ecrec::threads::run_parts(3, [&](std::size_t) { ++alone; });
    check(alone == 3, "the caller runs all parts");
    if (failures == 0) std::printf("checked: pool\n");
    return failures == 0 ? 0 : 1;
}
