// Arithmetic on sizes that come from arguments. It saturates: nothing that exists has SIZE_MAX elements, so a product
// that does not fit fails the comparison with the size of a buffer, as any other wrong size does.
#pragma once

#include <cstddef>
#include <limits>

namespace ecrec::batch {

inline constexpr std::size_t size_max = std::numeric_limits<std::size_t>::max();

inline std::size_t product(std::size_t a, std::size_t b) {
    std::size_t result = 0;
    return __builtin_mul_overflow(a, b, &result) ? size_max : result;
}

inline std::size_t sum(std::size_t a, std::size_t b) {
    std::size_t result = 0;
    return __builtin_add_overflow(a, b, &result) ? size_max : result;
}

}  // namespace ecrec::batch
