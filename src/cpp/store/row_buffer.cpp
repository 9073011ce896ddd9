#include "store/row_buffer.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <utility>

#include "base/error.hpp"
#include "gf/coefficient.hpp"
#include "kernels/registry.hpp"
#include "store/store.hpp"

namespace ecrec {
namespace {

// Each key is larger than the one before.
bool ascends(std::span<const std::uint64_t> keys) {
    bool in_order = true;
    pauses::in_pieces(keys.size(), pauses::piece_rows, sizeof(std::uint64_t), [&](std::size_t first, std::size_t last) {
        const auto begin = keys.begin() + static_cast<std::ptrdiff_t>(first);
        const auto end = keys.begin() + static_cast<std::ptrdiff_t>(std::min(last + 1, keys.size()));
        in_order = in_order && std::adjacent_find(begin, end, std::greater_equal<>()) == end;
    });
    return in_order;
}

}  // namespace

void RowBuffer::make_room(std::size_t rows, std::size_t bytes_each) {
    // What is made room for and the next make_room() must both fit, or all would be moved at the end of every window.
    if (size() == 0) {
        index_.make_room(expected_rows_ + expected_rows_ / 8 + rows);
        records_.reserve(expected_bytes_ + expected_bytes_ / 8 + rows * bytes_each);
    }
    index_.make_room(rows);
    if (looks_up_) places_.make_room(size() - places_.size() + rows);
    records_.make_room(rows * bytes_each);
}

bool RowBuffer::has_room(std::size_t rows, std::size_t bytes) const {
    const std::size_t rows_max = tuning.buffer_rows_max, bytes_max = tuning.buffer_bytes_max;
    return size() <= rows_max && rows <= rows_max - size() && records_.size() <= bytes_max &&
           bytes <= bytes_max - records_.size();
}

void RowBuffer::check_room(const char* where, std::size_t rows, std::size_t bytes) const {
    if (has_room(rows, bytes)) [[likely]]
        return;
    refuse(ErrorKind::state, where, ": ", rows, " rows of ", bytes, " bytes do not fit a buffer that holds ", size(),
           " rows of ", records_.size(), " bytes, expected at most ", tuning.buffer_rows_max.load(), " rows and ",
           tuning.buffer_bytes_max.load(), " bytes together; take what it holds first");
}

void RowBuffer::place_appended() {
    if (places_.size() == size()) [[likely]]
        return;
    const Growing<std::uint64_t>& keys = index_.keys();
    const auto units_of = [&](std::size_t number) { return store_->table_of(keys[number]).record_bytes() / unit; };
    const std::size_t placed = places_.size();
    std::size_t place = placed == 0 ? 0 : places_[placed - 1] + units_of(placed - 1);
    places_.make_room(size() - placed);
    pauses::in_pieces(size() - placed, pauses::piece_rows, pauses::row_bytes / 4,
                      [&](std::size_t first, std::size_t last) {
                          std::uint32_t* const places = places_.extend(last - first);
                          for (std::size_t m = first; m < last; ++m) {
                              places[m - first] = static_cast<std::uint32_t>(place);
                              place += units_of(placed + m);
                          }
                      });
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
    place_appended();
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
        records[m] = records_.data() + std::size_t{own_place} * unit;
        if (!is_new[m]) prefetch_write(records[m], bytes);
    }
    places_.extend(next - places_.size());
    records_.extend(place * unit - records_.size());
}

void RowBuffer::extend(std::size_t rows, std::size_t bytes_each) {
    index_.extend(rows);
    may_repeat_ = true;
    records_.extend(rows * bytes_each);
}

std::uint8_t* RowBuffer::find_or_add(std::uint64_t key, std::size_t bytes, bool& is_new) {
    place_appended();
    const std::size_t before = size();
    const std::uint32_t number = index_.insert(key);
    is_new = number == before;
    if (!is_new) return records_.data() + std::size_t{places_[number]} * unit;
    places_.push_back(static_cast<std::uint32_t>(records_.size() / unit));
    return records_.extend(bytes);
}

std::uint8_t* RowBuffer::record(std::uint64_t key, std::size_t bytes) {
    if (size() == 0) make_room(1, bytes);
    bool is_new = false;
    std::uint8_t* found = find_or_add(key, bytes, is_new);
    if (is_new) std::memset(found, 0, bytes);
    return found;
}

void RowBuffer::fold(std::uint8_t coefficient, std::span<const std::uint64_t> keys,
                     std::span<const std::uint8_t> records) {
    store_->check_blob("RowBuffer.fold", keys, records.size());
    if (coefficient == 0) return;
    check_room("RowBuffer.fold", keys.size(), records.size());
    const Operations& operations = ecrec::operations();
    const Coefficient& prepared = gf::coefficient(coefficient);
    if (size() == 0 && ascends(keys)) {
        copy(prepared, keys, records.data());
        return;
    }
    const bool merges = ascends({index_.keys().begin(), size()});
    const std::size_t known = size();
    std::size_t next = 0, place = 0;  // of the row that is compared, and where its record begins
    const std::uint8_t* source = records.data();
    for (std::size_t i = 0; i < keys.size(); ++i) {
        const std::uint64_t key = keys[i];
        const std::size_t bytes = store_->table_of(key).record_bytes();
        std::uint8_t* target = nullptr;
        if (merges) {
            const std::size_t first = next;
            const std::uint64_t* const here = index_.keys().begin();
            for (; next < known && here[next] < key; ++next) place += store_->table_of(here[next]).record_bytes();
            if (next < known && here[next] == key) target = records_.data() + place;
            pauses::work((next - first) * sizeof(key));
        } else if (i + 8 < keys.size()) {
            index_.prefetch(keys[i + 8]);
        }
        operations.fold(bytes, prepared, source, target != nullptr ? target : record(key, bytes));
        source += bytes;
        pauses::work(pauses::step_bytes + 4 * bytes);
    }
}

void RowBuffer::copy(const Coefficient& coefficient, std::span<const std::uint64_t> keys, const std::uint8_t* records) {
    const Operations& operations = ecrec::operations();
    for (const std::uint64_t key : keys) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        std::uint8_t* target = append(key, bytes);
        if (coefficient.value == 1) {
            std::memcpy(target, records, bytes);
        } else {
            std::memset(target, 0, bytes);
            operations.fold(bytes, coefficient, records, target);
        }
        records += bytes;
        pauses::work(pauses::step_bytes + 4 * bytes);
    }
}

Growing<std::uint64_t> RowBuffer::nonzero() const {
    if (may_repeat_) {
        RowBuffer merged(store_);
        merged.add(index_.keys(), records_);
        return merged.nonzero();
    }
    const Operations& operations = ecrec::operations();
    Growing<std::uint64_t> found;
    const std::uint8_t* source = records_.data();
    for (const std::uint64_t key : index_.keys()) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        if (!operations.is_zero(bytes, source)) found.push_back(key);
        source += bytes;
        pauses::work(pauses::row_bytes);
    }
    return found;
}

void RowBuffer::remove_class(int class_id) {
    store_->check_class(class_id);
    const auto is_of_class = [&](std::uint64_t key) { return store_->class_of(key) == class_id; };
    const std::uint64_t* const all = index_.keys().begin();
    bool is_there = false;
    pauses::in_pieces(size(), pauses::piece_rows, pauses::row_bytes / 4, [&](std::size_t first, std::size_t last) {
        is_there = is_there || std::any_of(all + first, all + last, is_of_class);
    });
    if (!is_there) return;
    // What stays moves down over what goes. A new index would cost far more than that, and in the middle of a recovery:
    // until the buffer is taken, rows are appended.
    Growing<std::uint64_t> keys = index_.take();
    std::size_t kept = 0, source = 0, target = 0;
    std::exception_ptr thrown;
    for (const std::uint64_t key : keys) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        // In the middle nothing makes sense: what a pause throws waits for the end.
        if (thrown == nullptr) {
            try {
                pauses::work(pauses::row_bytes + bytes);
            } catch (...) {
                thrown = std::current_exception();
            }
        }
        if (!is_of_class(key)) {
            keys[kept++] = key;
            if (target != source) std::memmove(records_.data() + target, records_.data() + source, bytes);
            target += bytes;
        }
        source += bytes;
    }
    keys.shrink_to(kept);
    records_.shrink_to(target);
    places_.shrink_to(0);
    index_.put_back(std::move(keys));
    if (looks_up_) {
        looks_up_ = false;
        windows_left_ = 1;
    }
    if (thrown != nullptr) std::rethrow_exception(thrown);
}

void RowBuffer::add(const Growing<std::uint64_t>& keys, const Growing<std::uint8_t>& records) {
    const std::uint8_t* source = records.data();
    for (const std::uint64_t key : keys) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        xor_into(record(key, bytes), source, bytes);
        source += bytes;
        pauses::work(pauses::step_bytes + 4 * bytes);
    }
}

RowsBlob RowBuffer::take() {
    expected_rows_ = size();
    expected_bytes_ = records_.size();
    decide();
    return clear();
}

RowsBlob RowBuffer::take_nonzero() {
    if (may_repeat_) {
        RowBuffer merged(store_);
        merged.add(index_.keys(), records_);
        take();
        return merged.take_nonzero();
    }
    RowsBlob rows = take();
    const Operations& operations = ecrec::operations();
    std::size_t kept = 0, source = 0, target = 0;
    for (const std::uint64_t key : rows.keys) {
        const std::size_t bytes = store_->table_of(key).record_bytes();
        if (!operations.is_zero(bytes, rows.records.data() + source)) {
            rows.keys[kept++] = key;
            if (target != source) std::memmove(rows.records.data() + target, rows.records.data() + source, bytes);
            target += bytes;
        }
        source += bytes;
        pauses::work(pauses::row_bytes + bytes);
    }
    rows.keys.shrink_to(kept);
    rows.records.shrink_to(target);
    return rows;
}

// What the next window does.
void RowBuffer::decide() {
    if (!looks_up_) {
        looks_up_ = size() != 0 && --windows_left_ == 0;
    } else if (asked_ >= tuning.lookup_judged_rows_min) {
        looks_up_ = found_ > asked_ / tuning.lookup_found_one_in;
        windows_left_ = tuning.lookup_windows_between;
    }
    asked_ = found_ = 0;
}

RowsBlob RowBuffer::clear() {
    places_.shrink_to(0);
    may_repeat_ = false;
    return {index_.take(), std::exchange(records_, {})};
}

}  // namespace ecrec
