// A bit a row, with a tree of summaries above: what is untouched is passed over in a few steps, however much it is.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <utility>

#include "base/error.hpp"
#include "base/mapping.hpp"

namespace ecrec {

// Each bit of a level says whether the word below it has any bit set; the top level is one word. Memory is that of the
// pages in which bits were set. A test is one load, and so is setting a bit whose word has another one.
class Bitmap {
public:
    Bitmap() = default;
    explicit Bitmap(std::uint64_t bits) : bits_(bits) {
        std::uint64_t words = 0;
        for (std::uint64_t below = bits; below != 0; below = (below + 63) / 64) {
            first_word_[levels_++] = words;
            words += (below + 63) / 64;
            if (below <= 64) break;
        }
        memory_ = Mapping(words * 8);
    }

    std::uint64_t bits() const { return bits_; }
    bool test(std::uint64_t bit) const { return (words()[bit >> 6] >> (bit & 63)) & 1; }
    // False if it was set already.
    bool set(std::uint64_t bit) {
        std::uint64_t& word = words()[bit >> 6];
        const std::uint64_t own = std::uint64_t{1} << (bit & 63);
        if ((word & own) != 0) return false;
        if (word == 0) summarise(bit >> 6);
        word |= own;
        return true;
    }

    void reset(std::uint64_t bit) {
        for (std::size_t level = 0; level < levels_; ++level, bit >>= 6) {
            std::uint64_t& word = level_words(level)[bit >> 6];
            word &= ~(std::uint64_t{1} << (bit & 63));
            if (word != 0) return;
        }
    }

    // The first set bit of [first, last); last if there is none.
    std::uint64_t next(std::uint64_t first, std::uint64_t last) const {
        std::uint64_t at = first;
        for (std::size_t level = 0; level < levels_ && first < last; ++level, at = (at >> 6) + 1) {
            if (at >> 6 >= words_of(level)) return last;
            std::uint64_t word = level_words(level)[at >> 6] & ~std::uint64_t{0} << (at & 63);
            if (word == 0) continue;
            for (at = (at & ~std::uint64_t{63}) + count_zeros(word); level != 0;) {
                word = level_words(--level)[at];
                at = (at << 6) + count_zeros(word);
            }
            return std::min(at, last);
        }
        return last;
    }

    // Set bits of [first, last).
    std::uint64_t count(std::uint64_t first, std::uint64_t last) const {
        std::uint64_t found = 0;
        for (std::uint64_t bit = next(first, last); bit < last; bit = next((bit | 63) + 1, last)) {
            found += static_cast<std::uint64_t>(std::popcount(words()[bit >> 6] & mask_of(bit, last)));
        }
        return found;
    }

    // Calls visit(bit) for each set bit of [first, last), in order, until it returns false; returns false if it did.
    template <class Visit>
    bool scan(std::uint64_t first, std::uint64_t last, Visit&& visit) const {
        for (std::uint64_t bit = next(first, last); bit < last; bit = next((bit | 63) + 1, last)) {
            for (std::uint64_t word = words()[bit >> 6] & mask_of(bit, last); word != 0; word &= word - 1) {
                if (!visit((bit & ~std::uint64_t{63}) + count_zeros(word))) return false;
            }
        }
        return true;
    }

    // Sets all bits that another one of the same size has. Calls done(words) now and then, with the words that it read.
    template <class Done>
    void unite(const Bitmap& other, Done&& done) {
        constexpr std::size_t words_max = 4096;
        std::size_t read = 0;
        for (std::uint64_t bit = other.next(0, bits_); bit < bits_; bit = other.next((bit | 63) + 1, bits_)) {
            std::uint64_t& word = words()[bit >> 6];
            if (word == 0) summarise(bit >> 6);
            word |= other.words()[bit >> 6];
            if (++read == words_max) done(std::exchange(read, 0));
        }
        done(read);
    }

    // Clears all bits. What is returned is memory that the caller gives back, which takes time for each of its pages.
    Mapping clear() {
        constexpr std::size_t small_bytes = std::size_t{1} << 20;  // quicker emptied than replaced
        if (memory_.size() <= small_bytes) {
            memory_.clear();
            return {};
        }
        try {
            Mapping fresh(memory_.size());
            return std::exchange(memory_, std::move(fresh));
        } catch (const StoreError&) {  // no address space for both
            memory_.clear();
            return {};
        }
    }

    // The bits of [first, last) that lie in the word of `first`.
    static std::uint64_t mask_of(std::uint64_t first, std::uint64_t last) {
        const std::uint64_t end = std::min(last, (first | 63) + 1);
        const std::uint64_t count = end - first;
        return (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << (first & 63);
    }

private:
    static constexpr std::size_t levels_max = 11;  // 64 ** 11 > 2 ** 64

    static std::uint64_t count_zeros(std::uint64_t word) { return static_cast<std::uint64_t>(std::countr_zero(word)); }
    std::uint64_t* words() const { return reinterpret_cast<std::uint64_t*>(memory_.data()); }
    std::uint64_t* level_words(std::size_t level) const { return words() + first_word_[level]; }
    std::uint64_t words_of(std::size_t level) const {
        const std::uint64_t end = level + 1 < levels_ ? first_word_[level + 1] : memory_.size() / 8;
        return end - first_word_[level];
    }
    // A word of the first level has a bit from now on.
    void summarise(std::uint64_t at) {
        for (std::size_t level = 1; level < levels_; ++level, at >>= 6) {
            std::uint64_t& word = level_words(level)[at >> 6];
            const bool was_empty = word == 0;
            word |= std::uint64_t{1} << (at & 63);
            if (!was_empty) return;
        }
    }

    Mapping memory_;
    std::uint64_t bits_ = 0;
    std::size_t levels_ = 0;
    std::array<std::uint64_t, levels_max> first_word_{};
};

}  // namespace ecrec
