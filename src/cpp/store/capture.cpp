#include "store/capture.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/registry.hpp"
#include "base/error.hpp"
#include "store/scan_ahead.hpp"
#include "store/store.hpp"

namespace ecrec {

Capture::Capture(std::shared_ptr<const Store> store, int class_id, std::uint64_t first, std::uint64_t last)
    : store_(std::move(store)),
      class_id_(class_id),
      of_keys_(false),
      first_(first),
      last_(last),
      rows_(store_) {
    const int index = store_->parity_index(class_id);
    if (first > last)
        refuse(ErrorKind::value, "Capture: first position ", first, " is after the last, ", last);
    store_->scan_tables(
        class_id, first, last,
        [&](std::uint64_t table_index, const Table& table, std::uint64_t from, std::uint64_t to) {
            const Bitmap& touched = table.parity_touched(index);
            const int residue = store_->residue_of(class_id);
            const auto find_place = [&](std::uint64_t quotient) { table.prefetch_parity_place(quotient, index); };
            const auto find_record = [&](std::uint64_t quotient) {
                prefetch_record(table.parity_record(quotient, index), table.record_bytes());
            };
            to = std::min(to, table.parity_extent(index));
            const std::size_t rows = touched.count(from, to);
            rows_.check_room("Capture", rows, rows * table.record_bytes());
            rows_.make_room(rows, table.record_bytes());
            return scan_ahead(touched, from, to, find_place, find_record, [&](std::uint64_t quotient) {
                const std::uint64_t key = table_index << stripe_bits | table.stripe_at(quotient, residue);
                std::memcpy(rows_.append(key, table.record_bytes()), table.parity_record(quotient, index),
                            table.record_bytes());
                pauses::work(pauses::step_bytes + 4 * table.record_bytes());
                return true;
            });
        });
}

Capture::Capture(std::shared_ptr<const Store> store, int class_id, std::span<const std::uint64_t> keys)
    : store_(std::move(store)), class_id_(class_id), of_keys_(true), rows_(store_) {
    const int index = store_->parity_index(class_id);
    store_->check_keys("Capture.of_keys", keys);
    for (const std::uint64_t key : keys) {
        if (store_->class_of(key) != class_id) {
            refuse(ErrorKind::value, "Capture.of_keys: ", store_->describe(key), " is of class ",
                   store_->class_of(key), ", expected class ", class_id);
        }
    }
    for (const std::uint64_t key : keys) {
        pauses::work(pauses::step_bytes + 4 * store_->table_of(key).record_bytes());
        keys_.insert(key);
        const Table& table = store_->table_of(key);
        const std::uint64_t quotient = store_->place_of(key).quotient;
        if (!table.parity_touched(index).test(quotient)) continue;
        rows_.check_room("Capture.of_keys", 1, table.record_bytes());
        std::memcpy(rows_.record(key, table.record_bytes()), table.parity_record(quotient, index),
                    table.record_bytes());
    }
}

bool Capture::holds(std::uint64_t key) {
    if (store_->class_of(key) != class_id_) return false;
    if (of_keys_) return keys_.find(key) != KeyIndex::absent;
    const std::uint64_t position = store_->position_of(key);
    return first_ <= position && position < last_;
}

void Capture::fold(int source, std::span<const std::uint64_t> keys, std::span<const std::uint8_t> records) {
    store_->check_peer(source);
    store_->check_blob("Capture.fold", keys, records.size());
    rows_.check_room("Capture.fold", keys.size(), records.size());
    const int slot = store_->place().slot_of(source, store_->residue_of(class_id_));
    const StoreCode& code = store_->code_of(class_id_);
    if (slot >= code.k()) {
        for (const std::uint64_t key : keys) {
            pauses::work(pauses::row_bytes);
            if (holds(key)) {
                refuse(ErrorKind::value, "Capture.fold: shard ", source, " has no data row in ",
                       store_->describe(key));
            }
        }
        return;
    }
    const Operations& operations = ecrec::operations();
    const Coefficient& coefficient = code.code.coefficient(store_->parity_index(class_id_), slot);
    const std::uint8_t* record = records.data();
    for (const std::uint64_t key : keys) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        if (holds(key)) {
            operations.fold(bytes, coefficient, record, rows_.record(key, bytes));
            pauses::work(pauses::step_bytes + 4 * bytes);
        }
        record += bytes;
        pauses::work(pauses::row_bytes);
    }
}

}  // namespace ecrec
