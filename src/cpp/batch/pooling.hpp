// Bags of rows to pooled vectors, and gradients back. The order of every sum is that of the ids.
#pragma once

#include <cstdint>
#include <span>

namespace ecrec::batch {

struct Bags {
    std::span<const std::int64_t> value_offsets;  // of each row's floats: rising, no two overlap
    std::span<const std::int32_t> inverse;        // row of each id
    std::span<const std::int64_t> bag_offsets;    // features x batch + 1, into inverse
    std::span<const std::int32_t> dims;           // of each feature
    std::int64_t batch = 0;
    std::span<const bool> mean;           // of each feature: divide by the number of ids in the bag
    std::span<const float> weights = {};  // of each id: its row is multiplied by it; empty: by none
};

// pooled: batch x sum(dims). A bag of one row is a copy, of several the sum from the first on, of none zero.
void pool_forward(std::span<const float> values, const Bags& bags, std::span<float> pooled);

// gradients: as values; a row that no id names gets zeros.
void pool_backward(std::span<const float> pooled_gradients, const Bags& bags, std::span<float> gradients);

// gradients: of each id's weight, the dot product of its row and its bag's gradient; of ids in no bag zero.
void pool_backward_weights(std::span<const float> pooled_gradients, std::span<const float> values, const Bags& bags,
                           std::span<float> gradients);

}  // namespace ecrec::batch
