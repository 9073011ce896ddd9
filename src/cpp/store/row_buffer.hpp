// Sparse rows of one store's tables, merged by XOR: deltas of a window, captures, rows being decoded.
//
// A window may hold a key twice: XORing both records gives the same result. Looking up which row is there already costs
// about a fifth of what a row costs that is sent and folded twice. Rows are therefore only looked up where it pays:
// while more than an eighth of those of a window were there, and in each 16th window, to see (tuning.hpp). What was appended without
// a look-up is indexed when something is looked up after all.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/operations.hpp"
#include "base/bytes.hpp"
#include "base/in_use.hpp"
#include "store/key_index.hpp"

namespace ecrec {

class Store;

// Records of some keys, one after the other.
struct RowsBlob {
    Growing<std::uint64_t> keys;
    Growing<std::uint8_t> records;
};

class RowBuffer {
public:
    // in_use: of the window that the buffer is a part of; else its own.
    explicit RowBuffer(std::shared_ptr<const Store> store, std::shared_ptr<InUse> in_use = nullptr)
        : store_(std::move(store)), in_use_(in_use != nullptr ? std::move(in_use) : std::make_shared<InUse>()) {}

    const Store& store() const { return *store_; }
    InUse& in_use() const { return *in_use_; }

    std::size_t size() const { return index_.size(); }
    std::size_t record_bytes() const { return records_.size(); }

    // The record of a key, which is looked up; zero if it is new. Valid until the next call that adds a row. As in all
    // that follows, there must be room for the row: see has_room().
    std::uint8_t* record(std::uint64_t key, std::size_t bytes);
    // The record of a key that is not there yet, appended without a look-up; its content is unspecified.
    std::uint8_t* append(std::uint64_t key, std::size_t bytes) {
        make_room(1, bytes);
        index_.extend(1)[0] = key;
        return records_.extend(bytes);
    }
    // The records of several keys, for which there must be room; those that are new have unspecified content, what is not
    // is asked for. While rows are not looked up, all are new.
    void unset_records(std::span<const std::uint64_t> keys, std::size_t bytes, std::uint8_t** records, bool* is_new);
    void make_room(std::size_t rows, std::size_t bytes_each);
    // So many more rows and bytes of records can be numbered: 2^31 rows, 64 GiB.
    bool has_room(std::size_t rows, std::size_t bytes) const;
    // Refuses what there is no room for.
    void check_room(const char* where, std::size_t rows, std::size_t bytes) const;

    bool looks_up() const { return looks_up_; }
    // Where the next rows go while they are not looked up, and that so many were written there. There must be room.
    struct End {
        std::uint64_t* key;
        std::uint8_t* record;
    };
    End end() const { return {index_.keys().end(), records_.end()}; }
    void extend(std::size_t rows, std::size_t bytes_each);

    // Rows in order of their keys are found without a look-up where those that are here are in order, too.
    void fold(std::uint8_t coefficient, std::span<const std::uint64_t> keys,
              std::span<const std::uint8_t> records);
    Growing<std::uint64_t> nonzero() const;
    // One pass over the rows; nothing is indexed anew. Rows that come later are appended until the next take().
    void remove_class(int class_id);
    RowsBlob take();
    // The same without rows that are all zero; each key is there once.
    RowsBlob take_nonzero();

private:
    static constexpr std::size_t unit = 16;  // which records are multiples of

    void decide();
    std::uint8_t* find_or_add(std::uint64_t key, std::size_t bytes, bool& is_new);
    RowsBlob clear();
    // Rows that were appended without a look-up get their places.
    void place_appended();
    void add(const Growing<std::uint64_t>& keys, const Growing<std::uint8_t>& records);
    // fold() of what is in order into a buffer that holds nothing.
    void copy(const Coefficient& coefficient, std::span<const std::uint64_t> keys, const std::uint8_t* records);

    std::shared_ptr<const Store> store_;
    std::shared_ptr<InUse> in_use_;
    KeyIndex index_;
    Growing<std::uint32_t> places_;  // of the first keys' records, in units of 16 bytes; of all after place_appended()
    Growing<std::uint8_t> records_;
    std::vector<std::uint32_t> numbers_;  // kept between calls for its memory only
    bool looks_up_ = true;
    bool may_repeat_ = false;  // a key was appended without a look-up, and may be there twice
    std::size_t asked_ = 0, found_ = 0;  // of unset_records(), in this window
    std::size_t windows_left_ = 0;             // until rows are looked up again
    // What was taken last: the next window is likely to be as large.
    std::size_t expected_rows_ = 0;
    std::size_t expected_bytes_ = 0;
};

}  // namespace ecrec
