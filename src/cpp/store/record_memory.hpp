// Records of one length, placed one behind the other in the order in which they are first used.
//
// Where a record lies says an index of 32 bits for each. Few records of many take the memory that they have, and not a
// page each; what is placed is dense, so that huge pages suit it whatever part of a table is used. Memory of the index is
// that of the pages in which records are used: 1,024 of them share a page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "store/mapping.hpp"

namespace ecrec {

class RecordMemory {
public:
    RecordMemory() = default;
    RecordMemory(std::uint64_t records, std::size_t record_bytes)
        : record_bytes_(record_bytes), records_(records * record_bytes), index_(records * sizeof(std::uint32_t)) {}

    bool is_placed(std::uint64_t number) const { return index()[number] != 0; }
    // Of a record that is placed. It stays there.
    std::uint8_t* at(std::uint64_t number) const { return address(index()[number]); }
    // The same of any; one that is new has unspecified content, which is zero until somebody writes there.
    // bad_alloc where 2^32 - 1 are placed already.
    std::uint8_t* place(std::uint64_t number) {
        std::uint32_t& place = index()[number];
        if (place == 0) {
            if (placed_ == placed_max) [[unlikely]]
                throw std::bad_alloc();
            place = ++placed_;
        }
        return address(place);
    }
    void prefetch(std::uint64_t number) const { __builtin_prefetch(index() + number); }

    std::size_t placed_bytes() const { return placed_ * record_bytes_; }
    const Mapping& records() const { return records_; }
    const Mapping& index_memory() const { return index_; }
    static constexpr std::size_t index_bytes = sizeof(std::uint32_t);

private:
    static constexpr std::uint32_t placed_max = ~std::uint32_t{0};

    std::uint32_t* index() const { return reinterpret_cast<std::uint32_t*>(index_.data()); }
    std::uint8_t* address(std::uint32_t place) const {
        return records_.data() + (std::size_t{place} - 1) * record_bytes_;
    }

    std::size_t record_bytes_ = 0;
    std::uint32_t placed_ = 0;  // the first one is 1: 0 in the index is a record that has no place
    Mapping records_, index_;
};

}  // namespace ecrec
