#include "store/row_buffer.hpp"

#include <cstring>
#include <utility>

#include "gf/coefficient.hpp"
#include "kernels/registry.hpp"
#include "store/store.hpp"

namespace ecrec {

std::uint8_t* RowBuffer::record(std::uint64_t key, std::size_t bytes) {
    const std::size_t end = rows_.records.size();
    const std::uint64_t offset = index_.insert(key, end);
    if (offset != end) return rows_.records.data() + offset;
    if (rows_.keys.size() == 0) {
        rows_.keys.reserve(expected_rows_);
        rows_.records.reserve(expected_bytes_);
    }
    rows_.keys.push_back(key);
    std::uint8_t* added = rows_.records.extend(bytes);
    std::memset(added, 0, bytes);
    return added;
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
