#include "store/table.hpp"

#include <algorithm>

#include "store/tuning.hpp"

namespace ecrec {
namespace {

std::uint64_t ceil_divide(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

// How many of 0, 1, ..., total - 1 leave the remainder when divided by step.
std::uint64_t count_of(std::uint64_t total, std::uint64_t remainder, std::uint64_t step) {
    return total > remainder ? ceil_divide(total - remainder, step) : 0;
}

}  // namespace

TableShape TableShape::at_rate(double rate) const {
    TableShape other = *this;
    other.hyper_exact[0] = rate;
    other.hyper[0] = static_cast<float>(rate);
    if (decoupled_decay != 0) other.kept = static_cast<float>(1.0 - rate * decoupled_decay);
    return other;
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
    const auto memory = [&](std::uint64_t records) {
        return RecordMemory(records, record_bytes_, records > tuning.unindexed_bytes_max / record_bytes_);
    };
    data_ = memory(quotients_ * k);
    parity_ = memory(quotients_ * static_cast<std::uint64_t>(shape.r));

    for (int slot = 0; slot < shape.k + shape.r; ++slot) {
        // slot_of is its own inverse: the class in which this shard has the slot.
        const int residue = place.slot_of(place.shard, slot);
        std::uint64_t extent = count_of(stripes_, static_cast<std::uint64_t>(residue), n);
        if (slot >= shape.k) {
            ParitySlot& parity_slot = parity_slots_[static_cast<std::size_t>(slot - shape.k)];
            parity_slot.extent = extent;
            parity_slot.touched = Bitmap(quotients_);
            continue;
        }
        // Only the last stripe of the table can be short.
        if (extent != 0 && row_at(stripe_at(extent - 1, residue), slot) >= shape.rows) --extent;
        DataSlot& data_slot = data_slots_[static_cast<std::size_t>(slot)];
        data_slot.extent = extent;
        data_slot.touched = Bitmap(quotients_);
        if (recovered) continue;
        data_slot.missing = extent;
        data_slot.recovered = Recovered(extent);
        missing_ += extent;
    }
}

void Table::write_initial(const Operations& operations, std::uint64_t row, float* record) const {
    if (shape_.initial == Initial::uniform) {
        operations.initial_uniform(shape_.dim, shape_.seed, row, shape_.scale, record);
    } else {
        std::fill_n(record, shape_.dim, 0.0f);
    }
    const std::size_t set = shape_.optimizer->state_floats_set(shape_.dim);
    std::fill_n(record + shape_.dim, set, shape_.state);
    std::fill_n(record + shape_.dim + set, shape_.state_floats() - set, 0.0f);
}

namespace {

constexpr std::size_t page_bytes = 4096, extent_pages = Mapping::extent_bytes / page_bytes;

// Calls visit(slot, first, last) for each slot and its quotients of which a record begins before byte `end` and ends
// behind byte `begin`. Record i is bytes [i * bytes_each, (i + 1) * bytes_each), and of slot i % slots, quotient
// i / slots. Slots: those of the data or of the parity.
template <class Slots, class Visit>
void for_slots(const Slots& slots, std::size_t bytes_each, std::size_t begin, std::size_t end, Visit&& visit) {
    const std::uint64_t first = begin / bytes_each, last = ceil_divide(end, bytes_each);
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
        // Quotients q with first <= q * slots + slot < last.
        visit(slots[slot], count_of(first, slot, slots.size()), count_of(last, slot, slots.size()));
    }
}

template <class Slots>
std::size_t count_touched_pages(const Slots& slots, std::size_t bytes_each, std::size_t extent) {
    std::size_t pages = 0;
    for (std::size_t page = extent * extent_pages; page < (extent + 1) * extent_pages; ++page) {
        bool is_touched = false;
        for_slots(slots, bytes_each, page * page_bytes, (page + 1) * page_bytes,
                  [&](const auto& slot, std::uint64_t first, std::uint64_t last) {
                      last = std::min(last, slot.touched.bits());
                      is_touched = is_touched || slot.touched.next(first, last) < last;
                  });
        pages += is_touched;
    }
    return pages;
}

template <class Slots>
std::size_t next_touched_extent(const Slots& slots, std::size_t bytes_each, std::size_t extent, std::size_t extents) {
    std::size_t found = extents;
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
        const Bitmap& touched = slots[slot].touched;
        const std::uint64_t from = count_of(extent * Mapping::extent_bytes / bytes_each, slot, slots.size());
        const std::uint64_t quotient = touched.next(from, touched.bits());
        if (quotient >= touched.bits()) continue;
        found = std::min(found, (quotient * slots.size() + slot) * bytes_each / Mapping::extent_bytes);
    }
    return std::max(extent, found);
}

}  // namespace

std::size_t Table::extents() const {
    return data_.records().extents() + parity_.records().extents() + data_.index_memory().extents() +
           parity_.index_memory().extents();
}

Table::Extent Table::find_extent(std::size_t extent) const {
    Extent kinds[] = {{&data_, true, false, 0}, {&parity_, false, false, 0}, {&data_, true, true, 0},
                      {&parity_, false, true, 0}};
    std::size_t kind = 0;
    for (; kind < 3 && extent >= kinds[kind].mapping().extents(); ++kind) extent -= kinds[kind].mapping().extents();
    kinds[kind].number = extent;
    return kinds[kind];
}

std::size_t Table::touched_pages(const Extent& extent) const {
    if (!extent.is_dense()) {
        return extent.is_data ? count_touched_pages(data_slots_, extent.bytes_each(), extent.number)
                              : count_touched_pages(parity_slots_, extent.bytes_each(), extent.number);
    }
    const std::size_t end = extent.memory->placed_bytes(), first = extent.number * Mapping::extent_bytes;
    return end <= first ? 0 : std::min(extent_pages, (end - first + page_bytes - 1) / page_bytes);
}

std::size_t Table::next_touched(const Extent& extent) const {
    const std::size_t end = extent.mapping().extents();
    if (extent.is_dense()) return touched_pages(extent) != 0 ? extent.number : end;
    return extent.is_data ? ecrec::next_touched_extent(data_slots_, extent.bytes_each(), extent.number, end)
                          : ecrec::next_touched_extent(parity_slots_, extent.bytes_each(), extent.number, end);
}

std::size_t Table::next_touched_extent(std::size_t extent) const {
    for (const std::size_t all = extents(); extent < all;) {
        const Extent at = find_extent(extent);
        const std::size_t found = next_touched(at);
        extent += found - at.number;
        if (found != at.mapping().extents()) return extent;
    }
    return extents();
}

Collapsed Table::collapse_if_dense(std::size_t extent) {
    if (huge_.bits() == 0) huge_ = Bitmap(extents());
    if (huge_.test(extent)) return Collapsed::not_moved;
    const Extent at = find_extent(extent);
    // Collapsing makes the rest resident, too: a third more at most, as the knob is by default.
    if (touched_pages(at) < tuning.huge_page_touched_min) return Collapsed::not_moved;
    const Collapsed found = at.mapping().collapse(at.number);
    if (found == Collapsed::moved) huge_.set(extent);
    return found;
}

void Table::expect(std::uint32_t slot, std::uint64_t first, std::uint64_t last, std::uint64_t rows) const {
    const bool is_dense = rows * extent_pages >= (last - first) * tuning.huge_page_touched_min;
    if (is_dense) data_.expect(data_number(first, slot), data_number(last, slot));
}

Mapping Table::wipe_parity(int index) {
    ParitySlot& slot = parity_slots_[static_cast<std::size_t>(index)];
    if (slot.rows_touched == 0) return {};
    slot.is_wiped = true;
    slot.rows_touched = 0;
    return slot.touched.clear();
}

}  // namespace ecrec
