#include "store/recovered.hpp"

#include <algorithm>
#include <bit>

#include "base/bitmap.hpp"

namespace ecrec {

Recovered::Recovered(std::uint64_t rows) : rows_(rows) {
    std::uint64_t all = (rows + 63) / 64;
    for (std::uint64_t nodes = all; rows != 0;) {  // of the level
        ++top_;
        const std::uint64_t level_words = (nodes + 63) / 64;
        any_[static_cast<std::size_t>(top_)] = all;
        full_[static_cast<std::size_t>(top_)] = all + level_words;
        all += 2 * level_words;
        if (nodes == 1) break;
        nodes = level_words;
    }
    memory_ = Mapping(all * 8);
}

std::uint64_t Recovered::end_of(int level, std::uint64_t index) const {
    return std::min(rows_, (index + 1) << 6 * level);
}

std::uint64_t Recovered::set_range(std::uint64_t first, std::uint64_t last) {
    last = std::min(last, rows_);
    return first < last ? mark(top_, 0, first, last) : 0;
}

std::uint64_t Recovered::mark(int level, std::uint64_t index, std::uint64_t first, std::uint64_t last) {
    const std::uint64_t begin = begin_of(level, index), end = end_of(level, index);
    if (has(full(level), index)) return 0;
    if (first <= begin && end <= last) {
        const std::uint64_t marked = end - begin - count(level, index);
        set(any(level), index);
        set(full(level), index);
        return marked;
    }
    set(any(level), index);
    first = std::max(first, begin);
    last = std::min(last, end);
    std::uint64_t marked = 0;
    bool is_full = false;
    if (level == 1) {
        std::uint64_t& word = rows_bits()[index];
        const std::uint64_t mask = Bitmap::mask_of(first, last);
        marked = static_cast<std::uint64_t>(std::popcount(mask & ~word));
        word |= mask;
        is_full = static_cast<std::uint64_t>(std::popcount(word)) == end - begin;
    } else {
        const int below = level - 1;
        for (std::uint64_t child = first >> 6 * below; child <= (last - 1) >> 6 * below; ++child) {
            marked += mark(below, child, first, last);
        }
        const std::uint64_t children = ((end - 1) >> 6 * below) - (begin >> 6 * below) + 1;
        is_full = static_cast<std::uint64_t>(std::popcount(full(below)[index])) == children;
    }
    if (is_full) set(full(level), index);
    return marked;
}

// Recovered rows below a node that is not full.
std::uint64_t Recovered::count(int level, std::uint64_t index) const {
    if (!has(any(level), index)) return 0;
    if (level == 1) return static_cast<std::uint64_t>(std::popcount(rows_bits()[index]));
    const int below = level - 1;
    std::uint64_t rows = 0;
    for (std::uint64_t some = any(below)[index]; some != 0; some &= some - 1) {
        const std::uint64_t child = (index << 6) + static_cast<std::uint64_t>(std::countr_zero(some));
        rows += has(full(below), child) ? end_of(below, child) - begin_of(below, child) : count(below, child);
    }
    return rows;
}

std::uint64_t Recovered::next(int level, std::uint64_t index, std::uint64_t first) const {
    const std::uint64_t begin = begin_of(level, index), end = end_of(level, index);
    first = std::max(first, begin);
    if (level == 1) {
        const std::uint64_t missing = ~rows_bits()[index] & Bitmap::mask_of(first, end);
        return missing == 0 ? rows_ : begin + static_cast<std::uint64_t>(std::countr_zero(missing));
    }
    const int below = level - 1;
    // Every child that is not full has a missing row, but it may lie before `first` in the first child.
    std::uint64_t some = ~full(below)[index] & Bitmap::mask_of(first >> 6 * below, ((end - 1) >> 6 * below) + 1);
    for (; some != 0; some &= some - 1) {
        const std::uint64_t child = (index << 6) + static_cast<std::uint64_t>(std::countr_zero(some));
        const std::uint64_t found = next(below, child, first);
        if (found != rows_) return found;
    }
    return rows_;
}

}  // namespace ecrec
