// A set of keys in order of insertion: an open-addressing hash from a key to its number.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "store/bytes.hpp"

namespace ecrec {

class KeyIndex {
public:
    static constexpr std::uint32_t absent = ~std::uint32_t{0};

    std::uint32_t size() const { return static_cast<std::uint32_t>(keys_.size()); }
    const Growing<std::uint64_t>& keys() const { return keys_; }

    std::uint32_t find(std::uint64_t key) const {
        if (size() == 0) return absent;
        const Slot& slot = slots_[place(hash(key), key)];
        return slot.value >= first_ ? slot.value - first_ : absent;
    }

    // The number of the key; size() has grown if it is new.
    std::uint32_t insert(std::uint64_t key) {
        if (2 * (std::size_t{size()} + 1) > slots_.size()) [[unlikely]] grow();
        const std::uint64_t mixed = hash(key);
        Slot& slot = slots_[place(mixed, key)];
        if (slot.value >= first_) return slot.value - first_;
        const std::uint32_t number = size();
        slot = {static_cast<std::uint32_t>(mixed), first_ + number};
        keys_.push_back(key);
        return number;
    }

    // numbers[m] = the number of keys[m]; new ones have the numbers from size() on, in order.
    void insert_all(std::span<const std::uint64_t> keys, std::uint32_t* numbers) {
        keys_.make_room(keys.size());
        while (2 * (size() + keys.size()) > slots_.size()) grow();
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
    }

    // Room for keys that find() and insert() need not know of; their numbers are those from size() on.
    std::uint64_t* extend(std::size_t keys) { return keys_.extend(keys); }

    void prefetch(std::uint64_t key) const {
        if (!slots_.empty()) __builtin_prefetch(&slots_[hash(key) >> shift_]);
    }

    void make_room(std::size_t keys) { keys_.make_room(keys); }

    // The keys, which are forgotten. Slots are not wiped: what is smaller than all values from now on is empty.
    Growing<std::uint64_t> take() {
        first_ += size();
        if (first_ > ~std::uint32_t{0} / 2) {
            slots_.assign(slots_.size(), Slot{});
            first_ = 1;
        }
        return std::exchange(keys_, {});
    }

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
    void grow() {
        slots_.assign(slots_.empty() ? 64 : 2 * slots_.size(), Slot{});
        shift_ = 64 - std::countr_zero(slots_.size());
        for (std::uint32_t number = 0; number < size(); ++number) {
            const std::uint64_t mixed = hash(keys_[number]);
            slots_[place(mixed, keys_[number])] = {static_cast<std::uint32_t>(mixed), first_ + number};
        }
    }

    Growing<std::uint64_t> keys_;
    std::vector<Slot> slots_;
    std::uint32_t first_ = 1;
    int shift_ = 58;
};

}  // namespace ecrec
