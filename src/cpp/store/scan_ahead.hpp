// Visits touched rows in order of their positions, which is no order of memory: places and records are prefetched.
#pragma once

#include <array>
#include <cstdint>

#include "base/bitmap.hpp"

namespace ecrec {

inline void prefetch_record(const std::uint8_t* record, std::size_t bytes) {
    constexpr std::size_t most = 1024;  // of a longer one the processor prefetches the rest itself
    for (std::size_t i = 0; i < bytes && i < most; i += 64) __builtin_prefetch(record + i);
    // trap: gcc leaves out calls of a function that does nothing else.
    asm volatile("" ::: "memory");
}

// As touched.scan(first, last, visit). find_place(bit) is called 32 rows before visit(bit), find_record(bit) 16 before.
template <class FindPlace, class FindRecord, class Visit>
bool scan_ahead(const Bitmap& touched, std::uint64_t first, std::uint64_t last, FindPlace&& find_place,
                FindRecord&& find_record, Visit&& visit) {
    constexpr std::size_t ahead = 32, near = 16;
    std::array<std::uint64_t, ahead> bits;
    std::size_t found = 0, asked = 0, visited = 0;
    const auto ask = [&](std::size_t until) {
        for (; asked < until; ++asked) find_record(bits[asked % ahead]);
    };
    const bool goes_on = touched.scan(first, last, [&](std::uint64_t bit) {
        if (found - visited == ahead) {
            const std::uint64_t oldest = bits[visited % ahead];
            ++visited;
            if (!visit(oldest)) return false;
        }
        find_place(bit);
        bits[found++ % ahead] = bit;
        if (found > near) ask(found - near);
        return true;
    });
    if (!goes_on) return false;
    ask(found);
    for (; visited != found; ++visited) {
        if (!visit(bits[visited % ahead])) return false;
    }
    return true;
}

}  // namespace ecrec
