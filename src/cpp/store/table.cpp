#include "store/table.hpp"

#include <algorithm>
#include <cstring>

namespace ecrec {
namespace {

std::uint64_t ceil_divide(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

// How many of 0, 1, ..., total - 1 leave the remainder when divided by step.
std::uint64_t count_of(std::uint64_t total, std::uint64_t remainder, std::uint64_t step) {
    return total > remainder ? ceil_divide(total - remainder, step) : 0;
}

// Floats of state that start at TableShape::state; they are the first ones.
std::size_t state_floats_set(const TableShape& shape) {
    switch (shape.optimizer) {
        case Optimizer::adagrad:
        case Optimizer::ftrl: return shape.dim;
        case Optimizer::rowwise_adagrad: return 1;
        case Optimizer::sgd:
        case Optimizer::momentum:
        case Optimizer::nesterov:
        case Optimizer::adam: break;
    }
    return 0;
}

}  // namespace

std::size_t TableShape::state_floats() const {
    switch (optimizer) {
        case Optimizer::sgd: break;
        case Optimizer::momentum:
        case Optimizer::nesterov:
        case Optimizer::adagrad: return dim;
        case Optimizer::rowwise_adagrad: return 1;
        case Optimizer::adam: return 2 * dim + adam_row_floats;
        case Optimizer::ftrl: return 2 * dim;
    }
    return 0;
}

Table::Table(const TableShape& shape, const ShardPlace& place, int code, std::uint64_t offset, bool recovered)
    : shape_(shape),
      place_(place),
      code_(code),
      offset_(offset),
      used_bytes_(4 * (shape.dim + shape.state_floats())),
      record_bytes_((used_bytes_ + 15) / 16 * 16),
      by_k_(static_cast<std::uint64_t>(shape.k)),
      by_groups_(static_cast<std::uint64_t>(place.groups)),
      by_shards_(static_cast<std::uint64_t>(place.shards)),
      data_slots_(static_cast<std::size_t>(shape.k)),
      parity_slots_(static_cast<std::size_t>(shape.r)) {
    const std::uint64_t k = static_cast<std::uint64_t>(shape.k);
    const std::uint64_t n = static_cast<std::uint64_t>(place.shards);
    stripes_ = count_of(ceil_divide(shape.rows, k), static_cast<std::uint64_t>(place.group),
                        static_cast<std::uint64_t>(place.groups));
    quotients_ = ceil_divide(stripes_, n);
    data_ = Mapping(quotients_ * k * record_bytes_);
    parity_ = Mapping(quotients_ * static_cast<std::uint64_t>(shape.r) * record_bytes_);

    for (int slot = 0; slot < shape.k + shape.r; ++slot) {
        // slot_of is its own inverse: the class in which this shard has the slot.
        const int residue = place.slot_of(place.shard, slot);
        std::uint64_t extent = count_of(stripes_, static_cast<std::uint64_t>(residue), n);
        if (slot >= shape.k) {
            parity_slots_[static_cast<std::size_t>(slot - shape.k)] = {extent, Bitmap(quotients_)};
            continue;
        }
        // Only the last stripe of the table can be short.
        if (extent != 0 && row_at(stripe_at(extent - 1, residue), slot) >= shape.rows) --extent;
        DataSlot& data_slot = data_slots_[static_cast<std::size_t>(slot)];
        data_slot = {extent, Bitmap(quotients_), Bitmap(recovered ? 0 : quotients_)};
        if (!recovered) missing_ += extent;
    }
}

void Table::write_initial(const Operations& operations, std::uint64_t row, float* record) const {
    if (shape_.initial == Initial::uniform) {
        operations.initial_uniform(shape_.dim, shape_.seed, row, shape_.scale, record);
    } else {
        std::fill_n(record, shape_.dim, 0.0f);
    }
    const std::size_t set = state_floats_set(shape_);
    std::fill_n(record + shape_.dim, set, shape_.state);
    std::fill_n(record + shape_.dim + set, shape_.state_floats() - set, 0.0f);
}

// Of `records` in all; is_touched(quotient, place among the records of a quotient).
template <class IsTouched>
bool Table::is_dense(std::size_t extent, std::size_t records, const IsTouched& is_touched) const {
    // Collapsing makes the rest resident, too: a third more at most.
    constexpr std::size_t page_bytes = 4096, pages = Mapping::extent_bytes / page_bytes, pages_min = pages * 3 / 4;
    const std::size_t first_byte = extent * Mapping::extent_bytes;
    std::size_t touched = 0, counted = 0;  // pages; the first that is not yet counted
    const std::size_t last = (first_byte + Mapping::extent_bytes) / record_bytes_;
    const std::size_t of_quotient = records / quotients_;
    for (std::size_t record = first_byte / record_bytes_; record <= last && record < records; ++record) {
        const std::size_t begin = record * record_bytes_, end = begin + record_bytes_;
        const std::size_t first_page = begin <= first_byte ? 0 : (begin - first_byte) / page_bytes;
        const std::size_t last_page = std::min(pages, (end - first_byte + page_bytes - 1) / page_bytes);
        if (last_page <= counted || !is_touched(record / of_quotient, record % of_quotient)) continue;
        touched += last_page - std::max(first_page, counted);
        counted = last_page;
    }
    return touched >= pages_min;
}

Collapsed Table::collapse_if_dense(std::size_t extent) {
    if (is_huge_.empty()) is_huge_.resize(extents());
    if (is_huge_[extent]) return Collapsed::not_moved;
    const bool is_data = extent < data_.extents();
    const std::size_t in_mapping = is_data ? extent : extent - data_.extents();
    const bool dense =
        is_data ? is_dense(in_mapping, quotients_ * data_slots_.size(),
                           [&](std::uint64_t quotient, std::size_t slot) {
                               return data_slots_[slot].touched.test(quotient);
                           })
                : is_dense(in_mapping, quotients_ * parity_slots_.size(),
                           [&](std::uint64_t quotient, std::size_t index) {
                               return parity_slots_[index].touched.test(quotient);
                           });
    if (!dense) return Collapsed::not_moved;
    is_huge_[extent] = (is_data ? data_ : parity_).collapse(in_mapping);
    return is_huge_[extent] ? Collapsed::moved : Collapsed::refused;
}

void Table::wipe_parity(int index) {
    Bitmap& touched = parity_slots_[static_cast<std::size_t>(index)].touched;
    scan_bits(
        0, parity_extent(index), [&](std::uint64_t word) { return touched.word(word); },
        [&](std::uint64_t quotient) {
            std::memset(parity_record(quotient, index), 0, record_bytes_);
            touched.clear(quotient);
            --parity_rows_touched_;
            return true;
        });
}

}  // namespace ecrec
