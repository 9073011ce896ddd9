// Open-addressing hash from a key to a number below 2^32.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace ecrec {

class KeyIndex {
public:
    static constexpr std::uint64_t absent = ~std::uint64_t{0};

    std::size_t size() const { return size_; }

    std::uint64_t find(std::uint64_t key) const {
        if (size_ == 0) return absent;
        const Slot& slot = slots_[place(key)];
        return slot.age == age_ ? slot.value : absent;
    }

    // The value of the key, which is `value` if it was absent until now.
    std::uint32_t insert(std::uint64_t key, std::uint32_t value) {
        if (2 * (size_ + 1) > slots_.size()) grow();
        Slot& slot = slots_[place(key)];
        if (slot.age != age_) {
            slot = {key, value, age_};
            ++size_;
        }
        return slot.value;
    }

    void prefetch(std::uint64_t key) const {
        if (!slots_.empty()) __builtin_prefetch(&slots_[hash(key)]);
    }

    // Wipes nothing: slots of another age are empty.
    void clear() {
        size_ = 0;
        if (++age_ == 0) {
            slots_.assign(slots_.size(), Slot{});
            age_ = 1;
        }
    }

private:
    struct Slot {
        std::uint64_t key = 0;
        std::uint32_t value = 0;
        std::uint32_t age = 0;
    };

    std::size_t hash(std::uint64_t key) const {
        // Multiplication by an odd constant; the upper bits are the well mixed ones.
        return static_cast<std::size_t>(((key ^ (key >> 32)) * 0x9e3779b97f4a7c15ull) >> shift_);
    }
    std::size_t place(std::uint64_t key) const {
        const std::size_t mask = slots_.size() - 1;
        std::size_t i = hash(key);
        while (slots_[i].age == age_ && slots_[i].key != key) i = (i + 1) & mask;
        return i;
    }
    void grow() {
        std::vector<Slot> old(slots_.empty() ? 64 : 2 * slots_.size());
        old.swap(slots_);
        shift_ = 64 - std::countr_zero(slots_.size());
        for (const Slot& slot : old) {
            if (slot.age == age_) slots_[place(slot.key)] = slot;
        }
    }

    std::vector<Slot> slots_;
    std::size_t size_ = 0;
    std::uint32_t age_ = 1;
    int shift_ = 58;
};

}  // namespace ecrec
