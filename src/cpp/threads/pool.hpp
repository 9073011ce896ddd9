// The threads of the bulk operations. How work is divided never decides what is computed: every byte has one thread
// that writes it, and the operations on it keep their order.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace ecrec::threads {

inline constexpr int threads_max = 256;
// Less is done sooner than another thread is awake. Tests make it small (store/tuning.hpp).
inline constinit std::atomic<std::size_t> grain_bytes{std::size_t{256} << 10};

// Threads that take part from now on, the caller's among them; 1 <= count <= threads_max. Fewer if the operating system does
// not let so many start. Returns their number. Waits for the operation that the present ones help with. In a child of fork()
// the caller's thread is alone until this is called there.
int use(int count);
int in_use();

// How many parts `work` units are divided into, so that each has at least `grain` of them: 1 to in_use().
std::size_t parts_of(std::size_t work, std::size_t grain);

// run(part) for each part below `parts`, which is at most in_use(); returns when all are done. One caller at a time is
// helped, others do all parts themselves. What a part throws is thrown here.
void run_parts(std::size_t parts, const std::function<void(std::size_t)>& run);

// Which of the parts what lies at an address belongs to: the same for all that is done to it, whatever else there is.
inline std::size_t part_of(const void* address, std::size_t parts) {
    const std::uint64_t mixed = (reinterpret_cast<std::uintptr_t>(address) >> 4) * 0x9e3779b97f4a7c15ull;
    return static_cast<std::size_t>((mixed >> 32) * parts >> 32);
}

// run(first, last) over parts of 0..count, each of at least `grain`, with bounds at multiples of `step`.
template <class Run>
void for_ranges(std::size_t count, std::size_t grain, std::size_t step, const Run& run) {
    const std::size_t parts = parts_of(count, grain);
    if (parts == 1) {
        run(std::size_t{0}, count);
        return;
    }
    const auto bound = [&](std::size_t part) { return part == parts ? count : count / parts * part / step * step; };
    run_parts(parts, [&](std::size_t part) { run(bound(part), bound(part + 1)); });
}

}  // namespace ecrec::threads
