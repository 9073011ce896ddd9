#include "store/row_buffer.hpp"

#include <cstring>
#include <utility>

#include "gf/coefficient.hpp"
#include "kernels/registry.hpp"
#include "store/store.hpp"

namespace ecrec {

void RowBuffer::make_room(std::size_t rows, std::size_t bytes_each) {
    if (rows_.keys.size() == 0) {
        rows_.keys.reserve(expected_rows_);
        rows_.records.reserve(expected_bytes_);
    }
    rows_.keys.make_room(rows);
    rows_.records.make_room(rows * bytes_each);
}

std::uint8_t* RowBuffer::unset_record(std::uint64_t key, std::size_t bytes, bool& is_new) {
    constexpr std::size_t unit = 16;  // which records are multiples of
    const std::size_t end = rows_.records.size() / unit;
    const std::uint32_t place = index_.insert(key, static_cast<std::uint32_t>(end));
    is_new = place == end;
    if (!is_new) return rows_.records.data() + place * unit;
    rows_.keys.push_back(key);
    return rows_.records.extend(bytes);
}

std::uint8_t* RowBuffer::record(std::uint64_t key, std::size_t bytes) {
    if (rows_.keys.size() == 0) make_room(1, bytes);
    bool is_new = false;
    std::uint8_t* found = unset_record(key, bytes, is_new);
    if (is_new) std::memset(found, 0, bytes);
    return found;
}

void RowBuffer::fold(std::uint8_t coefficient, std::span<const std::uint64_t> keys,
                     std::span<const std::uint8_t> records) {
    store_->check_blob("RowBuffer.fold", keys, records.size());
    if (coefficient == 0) return;
    const Operations& operations = ecrec::operations();
    const Coefficient& prepared = gf::coefficient(coefficient);
    const std::uint8_t* source = records.data();
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (i + 8 < keys.size()) index_.prefetch(keys[i + 8]);
        const std::size_t bytes = store_->table_of(keys[i]).record_bytes();
        operations.fold(bytes, prepared, source, record(keys[i], bytes));
        source += bytes;
    }
}

Growing<std::uint64_t> RowBuffer::nonzero() const {
    const Operations& operations = ecrec::operations();
    Growing<std::uint64_t> found;
    const std::uint8_t* source = rows_.records.data();
    for (const std::uint64_t key : rows_.keys) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        if (!operations.is_zero(bytes, source)) found.push_back(key);
        source += bytes;
    }
    return found;
}

void RowBuffer::remove_class(int class_id) {
    store_->check_class(class_id);
    RowsBlob old = std::exchange(rows_, {});
    index_.clear();
    const std::uint8_t* source = old.records.data();
    for (const std::uint64_t key : old.keys) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        if (store_->class_of(key) != class_id) std::memcpy(record(key, bytes), source, bytes);
        source += bytes;
    }
}

RowsBlob RowBuffer::take() {
    expected_rows_ = rows_.keys.size();
    expected_bytes_ = rows_.records.size();
    index_.clear();
    return std::exchange(rows_, {});
}

}  // namespace ecrec
