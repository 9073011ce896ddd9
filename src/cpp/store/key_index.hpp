// Open-addressing hash from a key to a number, for keys that are never all ones.
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
        return slot.key == key ? slot.value : absent;
    }

    // The value of the key, which is `value` if it was absent until now.
    std::uint64_t insert(std::uint64_t key, std::uint64_t value) {
        if (2 * (size_ + 1) > slots_.size()) grow();
        Slot& slot = slots_[place(key)];
        if (slot.key != key) {
            slot = {key, value};
            ++size_;
        }
        return slot.value;
    }

    void prefetch(std::uint64_t key) const {
        if (!slots_.empty()) __builtin_prefetch(&slots_[hash(key)]);
    }

    void clear() {
        // A table that was once large is not worth wiping over and over for a few keys.
        if (slots_.size() > 64 * (size_ + 16)) {
            std::vector<Slot>().swap(slots_);
        } else {
            slots_.assign(slots_.size(), Slot{});
        }
        size_ = 0;
    }

private:
    struct Slot {
        std::uint64_t key = absent;
        std::uint64_t value = absent;
    };

    std::size_t hash(std::uint64_t key) const {
        // Multiplication by an odd constant; the upper bits are the well mixed ones.
        return static_cast<std::size_t>(((key ^ (key >> 32)) * 0x9e3779b97f4a7c15ull) >> shift_);
    }
    std::size_t place(std::uint64_t key) const {
        const std::size_t mask = slots_.size() - 1;
        std::size_t i = hash(key);
        while (slots_[i].key != key && slots_[i].key != absent) i = (i + 1) & mask;
        return i;
    }
    void grow() {
        std::vector<Slot> old(slots_.empty() ? 64 : 2 * slots_.size());
        old.swap(slots_);
        shift_ = 64 - std::countr_zero(slots_.size());
        for (const Slot& slot : old) {
            if (slot.key != absent) slots_[place(slot.key)] = slot;
        }
    }

    std::vector<Slot> slots_;
    std::size_t size_ = 0;
    int shift_ = 58;
};

}  // namespace ecrec
