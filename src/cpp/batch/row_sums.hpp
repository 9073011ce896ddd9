// Sums of rows, handed to the kernel in runs: whether a row is the first of its sum is a value there and not a branch,
// which no CPU could predict, and memory is asked for ahead.
#pragma once

#include <cstddef>

#include "kernels/registry.hpp"

namespace ecrec::batch {

class RowSums {
public:
    // Of rows of `dim` floats.
    explicit RowSums(std::size_t dim) : dim_(dim) {}

    // target = source, or target += source. Done at the next flush() at the latest; in order.
    void add(const float* source, float* target, bool adds) {
        sources_[count_] = source;
        targets_[count_] = target;
        adds_[count_] = adds;
        if (++count_ == run) flush();
    }

    void flush() {
        operations_.sum_rows(count_, dim_, sources_, targets_, adds_);
        count_ = 0;
    }

    // Rows that wait for a flush at most.
    static constexpr std::size_t run = 256;

private:
    const Operations& operations_ = ecrec::operations();
    std::size_t dim_;
    std::size_t count_ = 0;
    const float* sources_[run];
    float* targets_[run];
    bool adds_[run];
};

}  // namespace ecrec::batch
