// A bit a row, scanned by 64-bit words, so that what is untouched or complete is passed over quickly.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "store/mapping.hpp"

namespace ecrec {

class Bitmap {
public:
    Bitmap() = default;
    explicit Bitmap(std::uint64_t bits) : memory_(((bits + 63) / 64) * 8) {}

    bool test(std::uint64_t bit) const { return (words()[bit >> 6] >> (bit & 63)) & 1; }
    void set(std::uint64_t bit) { words()[bit >> 6] |= std::uint64_t{1} << (bit & 63); }
    void clear(std::uint64_t bit) { words()[bit >> 6] &= ~(std::uint64_t{1} << (bit & 63)); }
    std::uint64_t word(std::uint64_t index) const { return words()[index]; }
    const std::uint64_t* word_of(std::uint64_t bit) const { return words() + (bit >> 6); }

    // Sets the bits of [first, last); returns how many were not set before.
    std::uint64_t set_range(std::uint64_t first, std::uint64_t last) {
        std::uint64_t changed = 0;
        for (std::uint64_t bit = first; bit < last;) {
            const std::uint64_t mask = mask_of(bit, last);
            std::uint64_t& value = words()[bit >> 6];
            changed += static_cast<std::uint64_t>(std::popcount(mask & ~value));
            value |= mask;
            bit = (bit | 63) + 1;
        }
        return changed;
    }

    // The bits of [first, last) that lie in the word of `first`.
    static std::uint64_t mask_of(std::uint64_t first, std::uint64_t last) {
        const std::uint64_t end = std::min(last, (first | 63) + 1);
        const std::uint64_t count = end - first;
        return (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << (first & 63);
    }

private:
    std::uint64_t* words() const { return reinterpret_cast<std::uint64_t*>(memory_.data()); }

    Mapping memory_;
};

// Calls visit(bit) for each set bit of word_at(word index) in [first, last), in order, until visit returns
// false; returns false if it did. The words are formed on demand: word_at may combine several bitmaps.
template <class WordAt, class Visit>
bool scan_bits(std::uint64_t first, std::uint64_t last, WordAt&& word_at, Visit&& visit) {
    for (std::uint64_t bit = first; bit < last; bit = (bit | 63) + 1) {
        std::uint64_t word = word_at(bit >> 6) & Bitmap::mask_of(bit, last);
        while (word != 0) {
            if (!visit((bit & ~std::uint64_t{63}) + static_cast<std::uint64_t>(std::countr_zero(word))))
                return false;
            word &= word - 1;
        }
    }
    return true;
}

}  // namespace ecrec
