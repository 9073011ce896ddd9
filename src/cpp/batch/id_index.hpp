// Numbers the distinct ids of one table of a batch in order of first occurrence. Used again for the next
// table.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace ecrec::batch {

class IdIndex {
public:
    // Forgets all ids and makes room for `ids` of them.
    void start(std::size_t ids) {
        const std::size_t capacity = std::bit_ceil(2 * ids + 16);
        if (slots_.size() < capacity) slots_.resize(capacity);
        mask_ = capacity - 1;
        shift_ = 64 - std::countr_zero(capacity);
        std::fill_n(slots_.begin(), capacity, Slot{});
        size_ = 0;
    }

    // The number of the id; size() has grown if it is new. At most as many different ids as start() was told.
    std::int32_t number(std::int64_t id) {
        std::size_t i =
            static_cast<std::size_t>((static_cast<std::uint64_t>(id) * 0x9e3779b97f4a7c15ull) >> shift_);
        while (slots_[i].number >= 0) {
            if (slots_[i].id == id) return slots_[i].number;
            i = (i + 1) & mask_;
        }
        slots_[i] = {id, size_};
        return size_++;
    }

    std::int32_t size() const { return size_; }

private:
    struct Slot {
        std::int64_t id = 0;
        std::int32_t number = -1;
    };

    std::vector<Slot> slots_;
    std::size_t mask_ = 0;
    int shift_ = 0;
    std::int32_t size_ = 0;
};

}  // namespace ecrec::batch
