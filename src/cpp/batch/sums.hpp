// Sums of gradients by row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.hpp"

namespace ecrec::batch {

// Gradients for rows of several tables, section after section.
struct Push {
    std::span<const std::int32_t> tables;
    std::span<const std::int64_t> counts;
    std::span<const std::int64_t> rows;
    std::span<const float> gradients;
};

struct SummedPush {
    std::vector<std::int32_t> tables;
    std::vector<std::int64_t> counts;
    Growing<std::int64_t> rows;
    Growing<float> gradients;
};

// One section a table that has rows, in order of table; a row's gradients are added in the order given.
SummedPush sum_sections(std::span<const Push> pushes, std::span<const std::int32_t> dims);

// out (segments x dim, zeroed here): out[inverse[i]] += values[i] in order of i.
void segment_sum(std::span<const float> values, std::size_t dim, std::span<const std::int64_t> inverse,
                 std::span<float> out);

// Index of the first value that is infinite or not a number; -1 if there is none.
std::int64_t first_nonfinite(std::span<const float> values);

}  // namespace ecrec::batch
