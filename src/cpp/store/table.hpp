// One table's share of a shard: where its rows lie, and their memory.
//
// Row i of the table is slot j = i % k of global stripe s = i / k; stripe s is stripe g = s / groups of group
// s % groups; slot j of stripe g lies on shard (g + j) % n. Here g = quotient * n + residue; the residue is
// the stripe's class. Of the stripes of one quotient a shard has at most one data row in each slot j < k and
// one parity row in each slot k <= j < k + r, which is how rows are numbered: (quotient, slot). Records lie at
// that number, or, where a share is large, dense in the order of their first touch (record_memory.hpp). Bitmaps are kept
// a slot, so that a class, which is one slot of a shard, is scanned as consecutive bits.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/operations.hpp"
#include "kernels/optimizers.hpp"
#include "base/bitmap.hpp"
#include "base/divider.hpp"
#include "base/mapping.hpp"
#include "store/record_memory.hpp"
#include "store/recovered.hpp"

namespace ecrec {

inline constexpr int shards_max = 16;
inline constexpr int classes_max = 64;
inline constexpr int stripe_bits = 48;
inline constexpr std::uint64_t unlimited = ~std::uint64_t{0};

enum class Initial { zeros, uniform };

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

struct TableShape {
    std::uint64_t rows = 0;
    std::uint64_t dim = 0;
    int k = 1;
    int r = 0;
    const Optimizer* optimizer = &optimizers[0];
    // In the order of Optimizer::hyper, as it says they are kept; hyper is hyper_exact rounded.
    std::array<double, hyper_max> hyper_exact{};
    std::array<float, hyper_max> hyper{};
    // Before each step of a row: each number of its gradient is cut off to [-max_gradient, max_gradient] (0: not), then the
    // gradient gets decay * weights, and the weights are multiplied by kept. One of both is without effect.
    float max_gradient = 0;
    float decay = 0;
    float kept = 1;
    double decoupled_decay = 0;  // kept is 1 - rate * decoupled_decay
    Initial initial = Initial::zeros;
    std::uint64_t seed = 0;
    float scale = 0;
    float state = 0;  // where the state that Optimizer::sets_state names starts; all other starts at zero

    std::size_t state_floats() const { return optimizer->state_floats(dim); }
    double rate() const { return hyper_exact[0]; }
    // The same with another learning rate.
    TableShape at_rate(double rate) const;
    bool adjusts_steps() const { return max_gradient != 0 || decay != 0 || kept != 1; }
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
    // Of a touched row.
    std::uint8_t* data_record(std::uint64_t quotient, std::uint32_t slot) const {
        return data_.at(data_number(quotient, slot));
    }
    const Bitmap& touched(std::uint32_t slot) const { return data_slots_[slot].touched; }
    bool is_touched(std::uint64_t quotient, std::uint32_t slot) const {
        return data_.is_indexed() ? data_.is_placed(data_number(quotient, slot)) : touched(slot).test(quotient);
    }
    // For the row's next look-up.
    void prefetch_place(std::uint64_t quotient, std::uint32_t slot) const {
        data_.prefetch(data_number(quotient, slot));
    }
    bool is_recovered(std::uint64_t quotient, std::uint32_t slot) const {
        return missing_ == 0 || data_slots_[slot].missing == 0 || data_slots_[slot].recovered.test(quotient);
    }
    // Rows that are not yet recovered: of all slots, of one; and the first of them in a slot at or after a quotient,
    // the slot's extent if there is none.
    std::uint64_t missing() const { return missing_; }
    std::uint64_t missing(std::uint32_t slot) const { return data_slots_[slot].missing; }
    std::uint64_t next_missing(std::uint32_t slot, std::uint64_t first) const {
        const DataSlot& of = data_slots_[slot];
        return of.missing == 0 ? of.extent : of.recovered.next_missing(first);
    }
    void mark_recovered(std::uint64_t quotient, std::uint32_t slot) {
        mark_recovered_range(slot, quotient, quotient + 1);
    }
    void mark_recovered_range(std::uint32_t slot, std::uint64_t first, std::uint64_t last) {
        DataSlot& of = data_slots_[slot];
        if (of.missing == 0) return;
        const std::uint64_t marked = of.recovered.set_range(first, last);
        of.missing -= marked;
        missing_ -= marked;
        if (of.missing == 0) of.recovered = {};
    }
    // So many rows of these quotients of a slot will be touched; other slots are as full.
    void expect(std::uint32_t slot, std::uint64_t first, std::uint64_t last, std::uint64_t rows) const;
    // Writes the initial weights and state of a row (used_bytes() of them).
    void write_initial(const Operations& operations, std::uint64_t row, float* record) const;
    // The record, which holds its initial value if it was untouched until now.
    std::uint8_t* touch(const Operations& operations, std::uint64_t quotient, std::uint32_t residue,
                        std::uint32_t slot) {
        const bool is_new = !is_touched(quotient, slot);
        std::uint8_t* record = data_.place(data_number(quotient, slot));
        if (is_new) {
            data_slots_[slot].touched.set(quotient);
            ++data_touched_;
            const std::uint64_t stripe = stripe_at(quotient, static_cast<int>(residue));
            write_initial(operations, row_at(stripe, static_cast<int>(slot)),
                          reinterpret_cast<float*>(record));
        }
        return record;
    }

    // -- parity rows, by (quotient, parity index = slot - k)
    // Of a touched row.
    std::uint8_t* parity_record(std::uint64_t quotient, int index) const {
        return parity_.at(parity_number(quotient, index));
    }
    void prefetch_parity_place(std::uint64_t quotient, int index) const {
        parity_.prefetch(parity_number(quotient, index));
    }
    const Bitmap& parity_touched(int index) const {
        return parity_slots_[static_cast<std::size_t>(index)].touched;
    }
    // Counts those that were not touched before.
    std::uint8_t* touch_parity(std::uint64_t quotient, int index, std::size_t& new_rows) {
        ParitySlot& slot = parity_slots_[static_cast<std::size_t>(index)];
        std::uint8_t* record = parity_.place(parity_number(quotient, index));
        if (slot.touched.set(quotient)) {
            ++slot.rows_touched;
            ++new_rows;
            if (slot.is_wiped) std::memset(record, 0, record_bytes_);
        }
        return record;
    }
    // All parity rows are untouched, and zero when they are touched again; until then they keep what they held. Returns
    // memory that the caller gives back, bit by bit if it is large.
    Mapping wipe_parity(int index);

    // The memory of all records; the table is not used again.
    void give_up(std::vector<Mapping>& to) {
        data_.give_up(to);
        parity_.give_up(to);
    }

    // -- huge pages: extents of all that has them: records of data and of parity, then the indexes to both
    std::size_t extents() const;
    // The first extent at or after this one that has part of a touched record, or of its index; extents() if there is none.
    std::size_t next_touched_extent(std::size_t extent) const;
    // Moves an extent into a huge page if it is not and most of its pages are touched.
    Collapsed collapse_if_dense(std::size_t extent);

    std::uint64_t data_rows_touched() const { return data_touched_; }
    std::uint64_t parity_rows_touched() const {
        std::uint64_t rows = 0;
        for (const ParitySlot& slot : parity_slots_) rows += slot.rows_touched;
        return rows;
    }
    const RecordMemory& data_memory() const { return data_; }
    const RecordMemory& parity_memory() const { return parity_; }

private:
    std::uint64_t data_number(std::uint64_t quotient, std::uint32_t slot) const {
        return quotient * static_cast<std::uint64_t>(shape_.k) + slot;
    }
    std::uint64_t parity_number(std::uint64_t quotient, int index) const {
        return quotient * static_cast<std::uint64_t>(shape_.r) + static_cast<std::uint64_t>(index);
    }
    // An extent of one of these, by its number in it.
    struct Extent {
        const RecordMemory* memory;
        bool is_data;
        bool is_index;
        std::size_t number;

        const Mapping& mapping() const { return is_index ? memory->index_memory() : memory->records(); }
        // Records lie one behind the other in it.
        bool is_dense() const { return memory->is_indexed() && !is_index; }
        // Otherwise each is, or has in the index, so much of it.
        std::size_t bytes_each() const { return is_index ? RecordMemory::index_bytes : memory->record_bytes(); }
    };
    Extent find_extent(std::size_t extent) const;
    std::size_t touched_pages(const Extent& extent) const;
    // The first of its mapping at or after this one that has a touched page; the number of all if there is none.
    std::size_t next_touched(const Extent& extent) const;

    struct DataSlot {
        std::uint64_t extent = 0;
        Bitmap touched;
        std::uint64_t missing = 0;
        Recovered recovered;  // only while some are missing
    };
    struct ParitySlot {
        std::uint64_t extent = 0;
        Bitmap touched;
        std::uint64_t rows_touched = 0;
        bool is_wiped = false;  // at least once: what is untouched need not be zero
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
    RecordMemory data_, parity_;
    std::vector<DataSlot> data_slots_;
    std::vector<ParitySlot> parity_slots_;
    Bitmap huge_;  // extents that were moved into huge pages
    std::uint64_t missing_ = 0;
    std::uint64_t data_touched_ = 0;
};

}  // namespace ecrec
