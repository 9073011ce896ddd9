// The data rows of a store as they are at one moment, copied out bit by bit while pushes go on: copy on write.
//
// A push that is about to change a row which was not yet copied out keeps its old record aside (before_change). What is
// kept is handed out before more rows are read, so that it stays small: rows that are pushed often are copied out early.
// Only touched rows are handed out, each once: an untouched row has its initial record. Where only those that changed since
// a mark are asked for (changes.hpp), only these.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/bitmap.hpp"
#include "base/bytes.hpp"
#include "base/in_use.hpp"
#include "store/changes.hpp"
#include "store/table.hpp"

namespace ecrec {

class Store;

class Snapshot {
public:
    // What changed between two marks of the store.
    struct Marks {
        std::uint64_t since, until;
    };
    // columns: of each table, how many bytes of a record belong to each column, in order; together Table::used_bytes().
    // changed: only rows that changed between these marks, of which the later one is of now.
    // Refuses a store of which rows are missing, or that has a snapshot already, and marks that it does not have.
    Snapshot(std::shared_ptr<Store> store, std::vector<std::vector<std::size_t>> columns,
             const std::optional<Marks>& changed);
    ~Snapshot();
    Snapshot(const Snapshot&) = delete;
    Snapshot& operator=(const Snapshot&) = delete;

    // Rows of one table: their ids as int64, then each column of all of them.
    struct Chunk {
        std::size_t table = 0;
        std::size_t rows = 0;  // 0: there are no more
        Growing<std::uint8_t> bytes;
    };
    // The next rows, of at most bytes_max, but of one row at least.
    Chunk take(std::size_t bytes_max);

    // Of the store, before it changes rows of a table.
    void before_change(std::size_t table_index, const Table& table, std::span<const RowPlace> rows);

    std::uint64_t rows() const { return rows_; }        // in all
    std::uint64_t taken() const { return taken_; }      // handed out
    std::uint64_t kept_bytes() const { return kept_; }  // of old records that wait

    const Store& store() const { return *store_; }
    // Lets the store go on without it; nothing more is handed out.
    void close();

private:
    struct Part {
        std::vector<std::size_t> columns;
        std::vector<Bitmap> copied;  // by slot: what was copied out or kept, or was first touched after the moment
        std::uint32_t slot = 0;      // where to read on
        std::uint64_t quotient = 0;
        Growing<std::int64_t> kept_ids;
        Growing<std::uint8_t> kept;  // used_bytes() of each
    };

    Chunk take_kept(std::size_t table_index, std::size_t rows_max);
    Chunk read(std::size_t table_index, std::size_t rows_max);
    std::size_t rows_of(const Table& table, std::size_t bytes) const;
    // Whether a row is in it, if it is touched.
    bool wants(std::size_t table_index, const RowPlace& row) const {
        return changed_ == nullptr || changed_->has(table_index, row.quotient, row.slot);
    }
    void fill(Chunk& chunk, const Part& part, std::span<const std::int64_t> ids,
              std::span<const std::uint8_t* const> records) const;

    std::shared_ptr<Store> store_;
    std::shared_ptr<const ChangeSet> changed_;  // null: all
    std::vector<Part> parts_;
    std::size_t reading_ = 0;  // the table that is read
    std::uint64_t rows_ = 0, taken_ = 0, kept_ = 0;
};

}  // namespace ecrec
