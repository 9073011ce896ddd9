#include "store/copying.hpp"

#include <cstring>
#include <utility>

#include "base/error.hpp"
#include "store/store.hpp"
#include "threads/pauses.hpp"

namespace ecrec {

Copying::Copying(std::shared_ptr<Store> store) : store_(std::move(store)) {
    for (std::size_t i = 0; i < store_->tables(); ++i) {
        const Table& table = store_->table(static_cast<int>(i));
        if (table.missing() != 0)
            refuse(ErrorKind::state, "Copying: ", table.missing(), " rows of table ", i, " are not recovered yet");
    }
    extend();
    store_->begin_copying(this);
}

Copying::~Copying() { store_->end_copying(this); }

void Copying::close() {
    store_->end_copying(this);
    parts_.clear();
    part_ = slot_ = 0;
    rows_ = bytes_ = quotient_ = 0;
}

void Copying::extend() {
    while (parts_.size() < store_->tables()) {
        const Table& table = store_->table(static_cast<int>(parts_.size()));
        Part part;
        const auto add = [&](std::uint64_t extent, const Bitmap& touched) {
            part.slots.emplace_back(extent);
            touched.scan(0, extent, [&](std::uint64_t quotient) {
                mark(part, part.slots.size() - 1, quotient, table.record_bytes());
                pauses::work(pauses::step_bytes);
                return true;
            });
        };
        for (int slot = 0; slot < table.shape().k; ++slot)
            add(table.data_extent(slot), table.touched(static_cast<std::uint32_t>(slot)));
        for (int index = 0; index < table.shape().r; ++index)
            add(table.parity_extent(index), table.parity_touched(index));
        parts_.push_back(std::move(part));
    }
}

void Copying::mark(Part& part, std::size_t slot, std::uint64_t quotient, std::size_t bytes) {
    if (!part.slots[slot].set(quotient)) return;
    ++rows_;
    bytes_ += bytes;
}

void Copying::changed(std::size_t table_index, std::span<const RowPlace> rows) {
    extend();
    const std::size_t bytes = store_->table(static_cast<int>(table_index)).record_bytes();
    Part& part = parts_[table_index];
    for (const RowPlace& row : rows) mark(part, row.slot, row.quotient, bytes);
}

void Copying::changed_parity(std::size_t table_index, std::uint64_t quotient, int index) {
    extend();
    const Table& table = store_->table(static_cast<int>(table_index));
    const std::size_t slot = static_cast<std::size_t>(table.shape().k) + static_cast<std::size_t>(index);
    mark(parts_[table_index], slot, quotient, table.record_bytes());
}

RowsBlob Copying::take(std::size_t bytes_max) {
    RowsBlob blob;
    if (parts_.empty()) return blob;
    const ShardPlace& place = store_->place();
    bool is_full = false;
    while (rows_ != 0 && !is_full) {
        if (part_ >= parts_.size()) part_ = slot_ = 0, quotient_ = 0;
        Part& part = parts_[part_];
        const Table& table = store_->table(static_cast<int>(part_));
        const std::size_t bytes = table.record_bytes();
        const std::size_t k = static_cast<std::size_t>(table.shape().k);
        for (; slot_ < part.slots.size() && !is_full; ++slot_, quotient_ = 0) {
            Bitmap& left = part.slots[slot_];
            const int residue = (place.shard - static_cast<int>(slot_) + place.shards) % place.shards;
            const std::uint64_t extent = left.bits();
            for (;;) {
                const std::uint64_t quotient = left.next(quotient_, extent);
                if (quotient == extent) break;
                if (blob.keys.size() != 0 && blob.records.size() + bytes > bytes_max) {
                    is_full = true;
                    break;
                }
                const std::uint8_t* record = slot_ < k ? table.data_record(quotient, static_cast<std::uint32_t>(slot_))
                                                       : table.parity_record(quotient, static_cast<int>(slot_ - k));
                blob.keys.push_back(static_cast<std::uint64_t>(part_) << stripe_bits |
                                    table.stripe_at(quotient, residue));
                std::memcpy(blob.records.extend(bytes), record, bytes);
                left.reset(quotient);
                --rows_;
                bytes_ -= bytes;
                quotient_ = quotient + 1;
                pauses::work(pauses::step_bytes + 4 * bytes);
            }
            if (is_full) break;
        }
        if (!is_full) ++part_, slot_ = 0, quotient_ = 0;
    }
    return blob;
}

}  // namespace ecrec
