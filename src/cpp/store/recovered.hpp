// Which rows of a slot are recovered, after they were all lost.
//
// A tree of words of 64 bits. A row has a bit; each node above has two: all rows below it are recovered (then the bits
// below no longer count), or any is. A range is marked at its largest nodes, so that marking and finding take steps by
// the depth of the tree and not by the rows; the bits of single rows that a mark covers are counted once.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/mapping.hpp"

namespace ecrec {

class Recovered {
public:
    Recovered() = default;
    explicit Recovered(std::uint64_t rows);

    bool test(std::uint64_t row) const {
        if (has(rows_bits(), row)) return true;
        for (int level = 1; level <= top_; ++level) {
            if (has(full(level), row >> 6 * level)) return true;
        }
        return false;
    }
    // Marks [first, last) of the rows; returns how many were missing until now.
    std::uint64_t set_range(std::uint64_t first, std::uint64_t last);
    // The first missing row at or after `first`; the number of rows if there is none.
    // At least one row must be missing.
    std::uint64_t next_missing(std::uint64_t first) const { return first < rows_ ? next(top_, 0, first) : rows_; }

private:
    static constexpr int levels_max = 11;

    static bool has(const std::uint64_t* words, std::uint64_t bit) { return (words[bit >> 6] >> (bit & 63)) & 1; }
    static void set(std::uint64_t* words, std::uint64_t bit) { words[bit >> 6] |= std::uint64_t{1} << (bit & 63); }
    std::uint64_t* words() const { return reinterpret_cast<std::uint64_t*>(memory_.data()); }
    std::uint64_t* rows_bits() const { return words(); }
    std::uint64_t* any(int level) const { return words() + any_[static_cast<std::size_t>(level)]; }
    std::uint64_t* full(int level) const { return words() + full_[static_cast<std::size_t>(level)]; }
    std::uint64_t begin_of(int level, std::uint64_t index) const { return index << 6 * level; }
    std::uint64_t end_of(int level, std::uint64_t index) const;

    // Of the node `index` of a level, 1 to top_, in which some of the rows lie; next(): one that is not full.
    std::uint64_t mark(int level, std::uint64_t index, std::uint64_t first, std::uint64_t last);
    std::uint64_t count(int level, std::uint64_t index) const;
    std::uint64_t next(int level, std::uint64_t index, std::uint64_t first) const;

    Mapping memory_;
    std::uint64_t rows_ = 0;
    int top_ = 0;  // the level whose one node has all rows below it
    std::array<std::uint64_t, levels_max + 1> any_{}, full_{};
};

}  // namespace ecrec
