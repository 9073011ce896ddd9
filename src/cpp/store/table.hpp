// One table's share of a shard: where its rows lie, and their memory.
//
// Row i of the table is slot j = i % k of global stripe s = i / k; stripe s is stripe g = s / groups of group
// s % groups; slot j of stripe g lies on shard (g + j) % n. Here g = quotient * n + residue; the residue is
// the stripe's class. Of the stripes of one quotient a shard has at most one data row in each slot j < k and
// one parity row in each slot k <= j < k + r, which is how rows are laid out: (quotient, slot). Bitmaps are
// kept a slot, so that a class, which is one slot of a shard, is scanned as consecutive bits.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/operations.hpp"
#include "store/bitmap.hpp"
#include "store/divider.hpp"
#include "store/mapping.hpp"

namespace ecrec {

inline constexpr int shards_max = 16;
inline constexpr int classes_max = 64;
inline constexpr int stripe_bits = 48;
inline constexpr std::uint64_t unlimited = ~std::uint64_t{0};

enum class Optimizer { sgd, momentum, nesterov, adagrad, rowwise_adagrad, adam, ftrl };
enum class Initial { zeros, uniform };
enum class Collapsed { not_moved, moved, refused };

// A shard's place in the cluster.
struct ShardPlace {
    int shard = 0;
    int shards = 1;
    int group = 0;
    int groups = 1;

    // Slot of this shard in the stripes of a class: data below k, parity below k + r, none at or above.
    int slot_in(int residue) const { return slot_of(shard, residue); }
    int slot_of(int other, int residue) const { return (other - residue + shards) % shards; }
};

inline constexpr std::size_t hyper_max = 4;
inline constexpr std::size_t adam_row_floats = 4;  // two doubles behind m and v: see adam_step in rows.cpp

struct TableShape {
    std::uint64_t rows = 0;
    std::uint64_t dim = 0;
    int k = 1;
    int r = 0;
    Optimizer optimizer = Optimizer::sgd;
    // In the order of add_table, of Adam 1 - beta for each beta; hyper is hyper_exact rounded.
    std::array<double, hyper_max> hyper_exact{};
    std::array<float, hyper_max> hyper{};
    Initial initial = Initial::zeros;
    std::uint64_t seed = 0;
    float scale = 0;
    float state = 0;  // where Adagrad's sums and FTRL's n start; all other state starts at zero

    std::size_t state_floats() const;
};

// A stripe of the shard's group.
struct StripePlace {
    std::uint64_t quotient = 0;
    int residue = 0;
};

// A data row on this shard.
struct RowPlace {
    std::uint64_t quotient;
    std::uint32_t residue;
    std::uint32_t slot;
};

class Table {
public:
    Table(const TableShape& shape, const ShardPlace& place, int code, std::uint64_t offset, bool recovered);

    // -- shape
    const TableShape& shape() const { return shape_; }
    int code() const { return code_; }
    std::uint64_t offset() const { return offset_; }        // position of the first stripe of each class
    std::uint64_t stripes() const { return stripes_; }      // of this group
    std::uint64_t quotients() const { return quotients_; }  // ceil(stripes / n)
    std::size_t weight_bytes() const { return 4 * shape_.dim; }
    std::size_t used_bytes() const { return used_bytes_; }      // weights and state
    std::size_t record_bytes() const { return record_bytes_; }  // with padding

    // -- places
    StripePlace stripe_place(std::uint64_t stripe) const {
        const std::uint64_t quotient = by_shards_(stripe);
        return {quotient, static_cast<int>(stripe - quotient * static_cast<std::uint64_t>(place_.shards))};
    }
    std::uint64_t stripe_at(std::uint64_t quotient, int residue) const {
        return quotient * static_cast<std::uint64_t>(place_.shards) + static_cast<std::uint64_t>(residue);
    }
    // Global row id of a data slot; it exists if it is below shape().rows.
    std::uint64_t row_at(std::uint64_t stripe, int slot) const {
        const std::uint64_t global =
            stripe * static_cast<std::uint64_t>(place_.groups) + static_cast<std::uint64_t>(place_.group);
        return global * static_cast<std::uint64_t>(shape_.k) + static_cast<std::uint64_t>(slot);
    }
    // Where row `id` < rows lies; false if not on this shard.
    bool find(std::uint64_t id, RowPlace& found) const {
        const std::uint64_t global = by_k_(id);
        const std::uint64_t stripe = by_groups_(global);
        const std::uint64_t group = global - stripe * static_cast<std::uint64_t>(place_.groups);
        const StripePlace at = stripe_place(stripe);
        const int slot = static_cast<int>(id - global * static_cast<std::uint64_t>(shape_.k));
        int shard = at.residue + slot;
        if (shard >= place_.shards) shard -= place_.shards;
        found = {at.quotient, static_cast<std::uint32_t>(at.residue), static_cast<std::uint32_t>(slot)};
        return shard == place_.shard && group == static_cast<std::uint64_t>(place_.group);
    }
    // Number of quotients for which this shard has a row in the slot (the rows of a slot are the first ones).
    std::uint64_t data_extent(int slot) const { return data_slots_[static_cast<std::size_t>(slot)].extent; }
    std::uint64_t parity_extent(int index) const {
        return parity_slots_[static_cast<std::size_t>(index)].extent;
    }

    // -- data rows, by (quotient, slot)
    std::uint8_t* data_record(std::uint64_t quotient, std::uint32_t slot) const {
        return data_.data() + (quotient * static_cast<std::uint64_t>(shape_.k) + slot) * record_bytes_;
    }
    const Bitmap& touched(std::uint32_t slot) const { return data_slots_[slot].touched; }
    bool is_touched(std::uint64_t quotient, std::uint32_t slot) const {
        return data_slots_[slot].touched.test(quotient);
    }
    bool is_recovered(std::uint64_t quotient, std::uint32_t slot) const {
        return missing_ == 0 || data_slots_[slot].recovered.test(quotient);
    }
    // Bits of rows that are not yet recovered, one word of them.
    std::uint64_t missing_word(std::uint32_t slot, std::uint64_t index) const {
        return missing_ == 0 ? 0 : ~data_slots_[slot].recovered.word(index);
    }
    std::uint64_t missing() const { return missing_; }
    void mark_recovered(std::uint64_t quotient, std::uint32_t slot) {
        if (missing_ != 0) missing_ -= data_slots_[slot].recovered.set_range(quotient, quotient + 1);
    }
    void mark_recovered_range(std::uint32_t slot, std::uint64_t first, std::uint64_t last) {
        if (missing_ != 0) missing_ -= data_slots_[slot].recovered.set_range(first, last);
    }
    // Writes the initial weights and state of a row (used_bytes() of them).
    void write_initial(const Operations& operations, std::uint64_t row, float* record) const;
    // The record, which holds its initial value if it was untouched until now.
    std::uint8_t* touch(const Operations& operations, std::uint64_t quotient, std::uint32_t residue,
                        std::uint32_t slot) {
        std::uint8_t* record = data_record(quotient, slot);
        if (!is_touched(quotient, slot)) {
            data_slots_[slot].touched.set(quotient);
            ++data_touched_;
            const std::uint64_t stripe = stripe_at(quotient, static_cast<int>(residue));
            write_initial(operations, row_at(stripe, static_cast<int>(slot)),
                          reinterpret_cast<float*>(record));
        }
        return record;
    }

    // -- parity rows, by (quotient, parity index = slot - k)
    std::uint8_t* parity_record(std::uint64_t quotient, int index) const {
        return parity_.data() +
               (quotient * static_cast<std::uint64_t>(shape_.r) + static_cast<std::uint64_t>(index)) *
                   record_bytes_;
    }
    const Bitmap& parity_touched(int index) const {
        return parity_slots_[static_cast<std::size_t>(index)].touched;
    }
    std::uint8_t* touch_parity(std::uint64_t quotient, int index) {
        parity_rows_touched_ +=
            parity_slots_[static_cast<std::size_t>(index)].touched.set_range(quotient, quotient + 1);
        return parity_record(quotient, index);
    }
    void wipe_parity(int index);

    // -- huge pages: extents of the data's memory, then of the parity's
    std::size_t extents() const { return data_.extents() + parity_.extents(); }
    // Moves an extent into a huge page if it is not and most of its pages are touched.
    Collapsed collapse_if_dense(std::size_t extent);

    std::uint64_t data_rows_touched() const { return data_touched_; }
    std::uint64_t parity_rows_touched() const { return parity_rows_touched_; }
    const Mapping& data_memory() const { return data_; }
    const Mapping& parity_memory() const { return parity_; }

private:
    template <class IsTouched>
    bool is_dense(std::size_t extent, std::size_t records, const IsTouched& is_touched) const;

    struct DataSlot {
        std::uint64_t extent = 0;
        Bitmap touched;
        Bitmap recovered;  // only of a table that was lost; without meaning once missing_ is 0
    };
    struct ParitySlot {
        std::uint64_t extent = 0;
        Bitmap touched;
    };

    TableShape shape_;
    ShardPlace place_;
    int code_;
    std::uint64_t offset_;
    std::uint64_t stripes_ = 0;
    std::uint64_t quotients_ = 0;
    std::size_t used_bytes_ = 0;
    std::size_t record_bytes_ = 0;
    Divider by_k_, by_groups_, by_shards_;
    Mapping data_, parity_;
    std::vector<DataSlot> data_slots_;
    std::vector<ParitySlot> parity_slots_;
    std::vector<bool> is_huge_;  // of each extent
    std::uint64_t missing_ = 0;
    std::uint64_t data_touched_ = 0;
    std::uint64_t parity_rows_touched_ = 0;
};

}  // namespace ecrec
