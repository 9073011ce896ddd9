#include "store/row_buffer.hpp"

#include <cstring>
#include <utility>

#include "gf/coefficient.hpp"
#include "kernels/registry.hpp"
#include "store/store.hpp"

namespace ecrec {

void RowBuffer::make_room(std::size_t rows, std::size_t bytes_each) {
    // What is made room for and the next make_room() must both fit, or all would be moved at the end of every window.
    if (size() == 0) {
        index_.make_room(expected_rows_ + expected_rows_ / 8 + rows);
        records_.reserve(expected_bytes_ + expected_bytes_ / 8 + rows * bytes_each);
    }
    index_.make_room(rows);
    places_.make_room(rows);
    records_.make_room(rows * bytes_each);
}

void RowBuffer::unset_records(std::span<const std::uint64_t> keys, std::size_t bytes, std::uint8_t** records,
                              bool* is_new) {
    asked_ += keys.size();
    if (!looks_up_) {
        const End first = end();
        for (std::size_t m = 0; m < keys.size(); ++m) {
            first.key[m] = keys[m];
            records[m] = first.record + m * bytes;
            is_new[m] = true;
        }
        extend(keys.size(), bytes);
        return;
    }
    numbers_.resize(keys.size());
    std::uint32_t next = index_.size();
    index_.insert_all(keys, numbers_.data());
    std::size_t place = records_.size() / unit;
    for (std::size_t m = 0; m < keys.size(); ++m) {
        std::uint32_t& own_place = places_.data()[numbers_[m]];
        is_new[m] = numbers_[m] == next;
        found_ += !is_new[m];
        if (is_new[m]) {
            own_place = static_cast<std::uint32_t>(place);
            place += bytes / unit;
            ++next;
        }
        records[m] = records_.data() + own_place * unit;
        if (!is_new[m]) prefetch_write(records[m], bytes);
    }
    places_.extend(next - places_.size());
    records_.extend(place * unit - records_.size());
}

void RowBuffer::extend(std::size_t rows, std::size_t bytes_each) {
    index_.extend(rows);
    places_.extend(rows);
    records_.extend(rows * bytes_each);
}

std::uint8_t* RowBuffer::unset_record(std::uint64_t key, std::size_t bytes, bool& is_new) {
    const std::size_t before = size();
    const std::uint32_t number = index_.insert(key);
    is_new = number == before;
    if (!is_new) return records_.data() + places_[number] * unit;
    places_.push_back(static_cast<std::uint32_t>(records_.size() / unit));
    return records_.extend(bytes);
}

std::uint8_t* RowBuffer::record(std::uint64_t key, std::size_t bytes) {
    if (size() == 0) make_room(1, bytes);
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
    const std::uint8_t* source = records_.data();
    for (const std::uint64_t key : index_.keys()) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        if (!operations.is_zero(bytes, source)) found.push_back(key);
        source += bytes;
    }
    return found;
}

void RowBuffer::remove_class(int class_id) {
    store_->check_class(class_id);
    const RowsBlob old = clear();
    const std::uint8_t* source = old.records.data();
    for (const std::uint64_t key : old.keys) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        if (store_->class_of(key) != class_id) xor_into(record(key, bytes), source, bytes);
        source += bytes;
    }
}

RowsBlob RowBuffer::take() {
    expected_rows_ = size();
    expected_bytes_ = records_.size();
    decide();
    return clear();
}

// What the next window does.
void RowBuffer::decide() {
    if (!looks_up_) {
        looks_up_ = size() != 0 && --windows_left_ == 0;
    } else if (asked_ >= judged_min) {
        looks_up_ = 8 * found_ > asked_;
        windows_left_ = windows_between;
    }
    asked_ = found_ = 0;
}

RowsBlob RowBuffer::clear() {
    places_.shrink_to(0);
    return {index_.take(), std::exchange(records_, {})};
}

}  // namespace ecrec
