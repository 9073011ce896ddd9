// Numbers the distinct ids of one table of a batch in order of first occurrence. Used again for the next
// table.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include "base/bytes.hpp"
#include "threads/pauses.hpp"

namespace ecrec::batch {

// Id: what an id is stored as. 32 bits where the table is small enough halve the memory that is looked through.
template <class Id>
class IdIndex {
public:
    // Forgets all ids and makes room for `ids` of them.
    void start(std::size_t ids) {
        const std::size_t capacity = std::bit_ceil(2 * ids + 16);
        mask_ = capacity - 1;
        shift_ = 64 - std::countr_zero(capacity);
        // Slots of before hold smaller values than any from now on, which makes them empty.
        first_ = next_;
        const bool exhausted = ids >= std::numeric_limits<std::uint32_t>::max() - next_;
        if (slots_.size() < capacity || exhausted) {
            const std::size_t slots = std::max(slots_.size(), capacity);
            slots_.shrink_to(0);
            slots_.reserve(slots);
            pauses::in_pieces(slots, pauses::piece_bytes / sizeof(Slot), sizeof(Slot),
                              [&](std::size_t begin, std::size_t end) {
                                  Slot* const some = slots_.extend(end - begin);
                                  std::fill(some, some + (end - begin), Slot{});
                              });
            first_ = next_ = 1;
        }
    }

    // numbers[i] = base + the number of ids[i]; distinct[number] = id. At most as many different ids as start() was
    // told; `distinct` has room for all of them and one more.
    template <class Number>
    void number(std::span<const std::int64_t> ids, std::int64_t* distinct, Number* numbers, Number base) {
        Slot* const slots = slots_.data();
        const std::uint32_t first = first_;
        std::uint32_t next = next_;
        // Values count from `first`, modulo the numbers' range.
        using Wrapping = std::make_unsigned_t<Number>;
        const Wrapping bias = static_cast<Wrapping>(base) - static_cast<Wrapping>(first);
        const auto number_run = [&](std::size_t first_id, std::size_t last_id) {
            for (std::size_t i = first_id; i < last_id; ++i) {
                distinct[next - first] = ids[i];  // stays if the id is new
                numbers[i] = static_cast<Number>(static_cast<Wrapping>(place(slots, ids[i], first, next)) + bias);
            }
        };
        if ((mask_ + 1) * sizeof(Slot) <= near_bytes) {
            number_run(0, ids.size());
        } else {
            // A CPU looks too few ids ahead to hide what lies behind the second-level cache.
            constexpr std::size_t run = 32;
            for (std::size_t i = 0; i < ids.size(); i += run) {
                const std::size_t end = std::min(i + run, ids.size());
                for (std::size_t m = i; m < end; ++m) __builtin_prefetch(slots + slot_of(ids[m]), 1);
                number_run(i, end);
            }
        }
        next_ = next;
    }

    // The number of one id.
    std::int32_t number(std::int64_t id) {
        return static_cast<std::int32_t>(place(slots_.data(), id, first_, next_) - first_);
    }

    std::int32_t size() const { return static_cast<std::int32_t>(next_ - first_); }

private:
    struct Slot {
        Id id = 0;
        std::uint32_t value = 0;
    };

    static constexpr std::size_t near_bytes = 256 << 10;

    std::size_t slot_of(std::int64_t id) const {
        return static_cast<std::size_t>((static_cast<std::uint64_t>(id) * 0x9e3779b97f4a7c15ull) >> shift_);
    }

    // The value of the id: `next`, which goes on, if it is new.
    //
    // Whether an id is new is what a CPU cannot predict, so nothing may branch on it: the empty assembly keeps the
    // compiler from making branches of the two comparisons, which costs more than half of the speed.
    std::uint32_t place(Slot* slots, std::int64_t id, std::uint32_t first, std::uint32_t& next) const {
        const Id key = static_cast<Id>(id);
        for (std::size_t i = slot_of(id);; i = (i + 1) & mask_) {
            const std::uint32_t found = slots[i].value;
            std::uint32_t is_new = found < first;
            std::uint32_t is_same = slots[i].id == key;
            asm("" : "+r"(is_new), "+r"(is_same));
            if ((is_new | is_same) == 0) [[unlikely]] continue;
            const std::uint32_t value = found + ((next - found) & (0 - is_new));
            slots[i] = {key, value};
            next += is_new;
            return value;
        }
    }

    Growing<Slot> slots_;
    std::size_t mask_ = 0;
    int shift_ = 0;
    std::uint32_t first_ = 1;  // value of number 0
    std::uint32_t next_ = 1;
};

// Whether ids below `end` are told apart by IdIndex<std::uint32_t>.
inline bool is_narrow(std::uint64_t end) { return (end >> 32) == 0; }

}  // namespace ecrec::batch
