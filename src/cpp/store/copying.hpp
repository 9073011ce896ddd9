// The rows of a store, data and parity, that another one does not have as they are: all that are touched at first, later
// those that have changed since they were handed out. When nothing is left, and nothing changes, both stores are equal.
//
// Rows change as often as they like meanwhile: a row that changes is handed out again, as it is then. So nothing is kept
// aside, and who puts the rows into another store in the order in which they came has the newest of each.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/bitmap.hpp"
#include "store/row_buffer.hpp"
#include "store/table.hpp"

namespace ecrec {

class Store;

class Copying {
public:
    // Refuses a store of which rows are missing, or that is copied already.
    explicit Copying(std::shared_ptr<Store> store);
    ~Copying();
    Copying(const Copying&) = delete;
    Copying& operator=(const Copying&) = delete;

    // Whole records of the next rows, of at most bytes_max, but of one row at least; none: nothing is left for now. A
    // stripe has one row at most on a shard, of data or of parity, which its key names.
    RowsBlob take(std::size_t bytes_max);

    // Of the store, when it changes rows of a table.
    void changed(std::size_t table, std::span<const RowPlace> rows);
    void changed_parity(std::size_t table, std::uint64_t quotient, int index);

    // What is left to be handed out.
    std::uint64_t rows() const { return rows_; }
    std::uint64_t bytes() const { return bytes_; }

    const Store& store() const { return *store_; }
    // Lets the store go on without it; nothing more is handed out.
    void close();

private:
    struct Part {
        std::vector<Bitmap> slots;  // of data, then of parity: rows that are left
    };

    // Tables that were added since.
    void extend();
    void mark(Part& part, std::size_t slot, std::uint64_t quotient, std::size_t bytes);

    std::shared_ptr<Store> store_;
    std::vector<Part> parts_;
    std::size_t part_ = 0, slot_ = 0;  // where to read on
    std::uint64_t quotient_ = 0;
    std::uint64_t rows_ = 0, bytes_ = 0;
};

}  // namespace ecrec
