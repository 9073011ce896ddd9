// Records of one length: each at its own place, or one behind the other in the order in which they are first used.
//
// At its own place, a record is found without a look-up, and one that is used takes a page. Behind one another, few
// records of many take the memory that they have, and huge pages suit what is used, whatever part of a table it is; where
// a record lies then says an index of 32 bits for each, whose memory is that of the pages in which records are used:
// 1,024 of them share a page. Each look-up costs a line of memory beside those of the record.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "base/mapping.hpp"

namespace ecrec {

class RecordMemory {
public:
    RecordMemory() = default;
    RecordMemory(std::uint64_t records, std::size_t record_bytes, bool is_indexed)
        : record_bytes_(record_bytes),
          is_indexed_(is_indexed),
          records_(records * record_bytes),
          index_(is_indexed ? records * index_bytes : 0) {}

    bool is_indexed() const { return is_indexed_; }
    // Whether an indexed record was placed.
    bool is_placed(std::uint64_t number) const { return index()[number] != 0; }
    // Of a record that is placed. It stays there.
    std::uint8_t* at(std::uint64_t number) const { return address(is_indexed_ ? index()[number] - 1 : number); }
    // The same of any; one that is new has unspecified content, which is zero until somebody writes there.
    // bad_alloc where 2^32 - 1 are placed already.
    std::uint8_t* place(std::uint64_t number) {
        if (!is_indexed_) return address(number);
        std::uint32_t& place = index()[number];
        if (place == 0) {
            if (placed_ == placed_max) [[unlikely]]
                throw std::bad_alloc();
            place = ++placed_;
            if (placed_bytes() > expected_bytes_) [[unlikely]]
                expect_more();
        }
        return address(place - 1);
    }
    void prefetch(std::uint64_t number) const {
        if (is_indexed_) __builtin_prefetch(index() + number);
    }

    // Records of [first, last) that lie at their own places will nearly all be used. Before an extent that they begin in
    // the middle of come others, which may be used already; one that they end in is expected.
    void expect(std::uint64_t first, std::uint64_t last) const {
        constexpr std::size_t each = Mapping::extent_bytes;
        if (is_indexed_ || (last - first) * record_bytes_ < each) return;
        records_.expect((first * record_bytes_ + each - 1) / each, (last * record_bytes_ + each - 1) / each);
    }

    std::size_t record_bytes() const { return record_bytes_; }
    // Of an indexed one: records lie below this.
    std::size_t placed_bytes() const { return placed_ * record_bytes_; }
    // Its memory, which is the caller's now; it is not used again.
    void give_up(std::vector<Mapping>& to) {
        to.push_back(std::move(records_));
        to.push_back(std::move(index_));
    }
    const Mapping& records() const { return records_; }
    const Mapping& index_memory() const { return index_; }
    static constexpr std::size_t index_bytes = sizeof(std::uint32_t);

private:
    static constexpr std::uint32_t placed_max = ~std::uint32_t{0};

    // Records fill extents from front to back: each one after the first is a huge page at once, which takes the system a
    // small part of the time of its pages one by one. The first is not, so that few records have little memory.
    __attribute__((noinline)) void expect_more() {
        const std::size_t extent = expected_bytes_ / Mapping::extent_bytes;
        if (extent != 0) records_.expect(extent, extent + 1);
        expected_bytes_ += Mapping::extent_bytes;
    }
    std::uint32_t* index() const { return reinterpret_cast<std::uint32_t*>(index_.data()); }
    std::uint8_t* address(std::uint64_t place) const { return records_.data() + place * record_bytes_; }

    std::size_t record_bytes_ = 0;
    bool is_indexed_ = false;
    std::size_t expected_bytes_ = 0;  // whole extents that records have reached
    std::uint32_t placed_ = 0;        // the first one is 1: 0 in the index is a record that has no place
    Mapping records_, index_;
};

}  // namespace ecrec
