// Sparse rows of one store's tables, merged by XOR: deltas of a window, captures, rows being decoded.
//
// A key may stand in a window twice: whoever adds both rows gets the same. Looking up which row is there already costs
// about a fifth of what a row costs that is sent and folded twice, so that rows are only looked up where it pays: while
// more than an eighth of those of a window were there, and in each 16th window, to see.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/operations.hpp"
#include "store/bytes.hpp"
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
    explicit RowBuffer(std::shared_ptr<const Store> store) : store_(std::move(store)) {}

    std::size_t size() const { return index_.size(); }
    std::size_t record_bytes() const { return records_.size(); }

    // The record of a key, zero if it is new. Valid until the next call that adds a row.
    std::uint8_t* record(std::uint64_t key, std::size_t bytes);
    // The same of a key that may be new; then `is_new` is set and the record's content is unspecified. Valid until more
    // rows are added than there is room for.
    std::uint8_t* unset_record(std::uint64_t key, std::size_t bytes, bool& is_new);
    // The same of several keys, for which there must be room; what is not new is asked for. While rows are not looked up,
    // all are new.
    void unset_records(std::span<const std::uint64_t> keys, std::size_t bytes, std::uint8_t** records, bool* is_new);
    void make_room(std::size_t rows, std::size_t bytes_each);

    bool looks_up() const { return looks_up_; }
    // Where the next rows go while they are not looked up, and that so many were written there. There must be room.
    struct End {
        std::uint64_t* key;
        std::uint8_t* record;
    };
    End end() const { return {index_.keys().end(), records_.end()}; }
    void extend(std::size_t rows, std::size_t bytes_each);

    void fold(std::uint8_t coefficient, std::span<const std::uint64_t> keys,
              std::span<const std::uint8_t> records);
    Growing<std::uint64_t> nonzero() const;
    void remove_class(int class_id);
    RowsBlob take();

private:
    static constexpr std::size_t unit = 16;  // which records are multiples of
    static constexpr std::size_t judged_min = 16;  // rows of a window that says whether looking up pays
    static constexpr int windows_between = 15;

    void decide();
    RowsBlob clear();

    std::shared_ptr<const Store> store_;
    KeyIndex index_;
    Growing<std::uint32_t> places_;  // of each key's record, in units of 16 bytes
    Growing<std::uint8_t> records_;
    std::vector<std::uint32_t> numbers_;  // kept between calls for its memory only
    bool looks_up_ = true;
    std::size_t asked_ = 0, found_ = 0;  // of unset_records(), in this window
    int windows_left_ = 0;               // until rows are looked up again
    // What was taken last: the next window is likely to be as large.
    std::size_t expected_rows_ = 0;
    std::size_t expected_bytes_ = 0;
};

}  // namespace ecrec
