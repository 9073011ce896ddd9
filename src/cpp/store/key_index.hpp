// Keys in order of insertion: an open-addressing hash from a key to its number.
//
// Keys that were appended with extend() are not looked up, and may be there already. The first look-up after that
// indexes them: a key that is there twice is found by its first number. At least half of the slots are always empty,
// so that every probe ends: see reserve_slots(). There are at most Tuning::buffer_rows_max keys, which is below 2^31:
// with first_, which is no larger, they are numbered in 32 bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <utility>

#include "base/bytes.hpp"
#include "store/tuning.hpp"
#include "threads/pauses.hpp"

namespace ecrec {

class KeyIndex {
public:
    static constexpr std::uint32_t absent = ~std::uint32_t{0};

    std::uint32_t size() const { return static_cast<std::uint32_t>(keys_.size()); }
    const Growing<std::uint64_t>& keys() const { return keys_; }

    std::uint32_t find(std::uint64_t key) {
        index_appended();
        if (size() == 0) return absent;
        const Slot& slot = slots_[place(hash(key), key)];
        return slot.value >= first_ ? slot.value - first_ : absent;
    }

    // The number of the key; size() has grown if it is new.
    std::uint32_t insert(std::uint64_t key) {
        index_appended();
        reserve_slots(std::size_t{size()} + 1);
        const std::uint64_t mixed = hash(key);
        Slot& slot = slots_[place(mixed, key)];
        if (slot.value >= first_) return slot.value - first_;
        const std::uint32_t number = size();
        slot = {static_cast<std::uint32_t>(mixed), first_ + number};
        keys_.push_back(key);
        ++indexed_;
        return number;
    }

    // numbers[m] = the number of keys[m]; new ones have the numbers from size() on, in order.
    void insert_all(std::span<const std::uint64_t> keys, std::uint32_t* numbers) {
        index_appended();
        keys_.make_room(keys.size());
        reserve_slots(size() + keys.size());
        for (const std::uint64_t key : keys) prefetch(key);
        // What the loop changes is kept in registers.
        Slot* const slots = slots_.data();
        std::uint64_t* const known = keys_.data();
        const std::size_t mask = slots_.size() - 1;
        const std::uint32_t first = first_;
        const int shift = shift_;
        std::uint32_t next = size();
        for (std::size_t m = 0; m < keys.size(); ++m) {
            const std::uint64_t key = keys[m];
            const std::uint64_t mixed = hash(key);
            const std::uint32_t tag = static_cast<std::uint32_t>(mixed);
            std::size_t i = mixed >> shift;
            while (slots[i].value >= first && (slots[i].tag != tag || known[slots[i].value - first] != key)) {
                i = (i + 1) & mask;
            }
            if (slots[i].value < first) {
                slots[i] = {tag, first + next};
                known[next++] = key;
            }
            numbers[m] = slots[i].value - first;
        }
        keys_.extend(next - size());
        indexed_ = next;
    }

    // Indexes what extend() appended, as every look-up does.
    void index_appended() {
        if (indexed_ == size()) [[likely]] return;
        reserve_slots(size());
        index_up_to(size());
    }

    // Room for keys that are not looked up; their numbers are those from size() on. The caller writes them before the
    // next call.
    std::uint64_t* extend(std::size_t keys) { return keys_.extend(keys); }

    void prefetch(std::uint64_t key) const {
        if (slots_.size() != 0) __builtin_prefetch(&slots_[hash(key) >> shift_]);
    }

    void make_room(std::size_t keys) { keys_.make_room(keys); }

    // The keys, which are forgotten. Slots are not wiped: what is smaller than all values from now on is empty.
    Growing<std::uint64_t> take() {
        first_ += size();
        indexed_ = 0;
        if (first_ > tuning.index_values_max) {
            slots_ = empty_slots(slots_.size());
            first_ = 1;
        }
        return std::exchange(keys_, {});
    }

    // Some of the keys that take() gave, as if extend() had appended them.
    void put_back(Growing<std::uint64_t> keys) { keys_ = std::move(keys); }

private:
    struct Slot {
        std::uint32_t tag = 0;    // lower bits of the hash; the place is made of upper ones
        std::uint32_t value = 0;  // first_ + number
    };

    static std::uint64_t hash(std::uint64_t key) {
        // Multiplication by an odd constant; the upper bits are the well mixed ones.
        const std::uint64_t mixed = (key ^ (key >> 32)) * 0x9e3779b97f4a7c15ull;
        return mixed ^ (mixed >> 32);
    }
    std::size_t place(std::uint64_t mixed, std::uint64_t key) const {
        const std::size_t mask = slots_.size() - 1;
        std::size_t i = mixed >> shift_;
        while (slots_[i].value >= first_ &&
               (slots_[i].tag != static_cast<std::uint32_t>(mixed) || keys_[slots_[i].value - first_] != key)) {
            i = (i + 1) & mask;
        }
        return i;
    }
    // At least twice as many slots as there will be keys, indexed or not.
    void reserve_slots(std::size_t keys) {
        if (2 * keys <= slots_.size()) [[likely]] return;
        grow(keys);
    }
    __attribute__((noinline)) void grow(std::size_t keys) {
        const std::size_t least = tuning.index_slots_min, grown = tuning.index_growth * slots_.size();
        slots_ = empty_slots(std::max({least, grown, std::bit_ceil(2 * keys)}));
        shift_ = 64 - std::countr_zero(slots_.size());
        index_up_to(std::exchange(indexed_, 0));
    }
    static Growing<Slot> empty_slots(std::size_t slots) {
        Growing<Slot> empty;
        empty.reserve(slots);
        pauses::in_pieces(slots, pauses::piece_bytes / sizeof(Slot), sizeof(Slot),
                          [&](std::size_t first, std::size_t last) {
                              Slot* const some = empty.extend(last - first);
                              std::fill(some, some + (last - first), Slot{});
                          });
        return empty;
    }
    void index_up_to(std::uint32_t last) {
        while (indexed_ < last) {
            const std::uint32_t piece = std::min<std::uint32_t>(last - indexed_, pauses::piece_rows);
            for (std::uint32_t i = 0; i < piece; ++i) index_next();
            pauses::work(piece * pauses::row_bytes);
        }
    }
    void index_next() {
        const std::uint64_t key = keys_[indexed_];
        const std::uint64_t mixed = hash(key);
        Slot& slot = slots_[place(mixed, key)];
        if (slot.value < first_) slot = {static_cast<std::uint32_t>(mixed), first_ + indexed_};
        ++indexed_;
    }

    Growing<std::uint64_t> keys_;
    std::uint32_t indexed_ = 0;  // the first keys, which the slots know
    Growing<Slot> slots_;
    std::uint32_t first_ = static_cast<std::uint32_t>(tuning.index_values_first);
    int shift_ = 58;
};

}  // namespace ecrec
