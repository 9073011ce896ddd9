// Which data rows of a store changed between marks, for copies of only what changed since an earlier copy.
//
// Between two marks that somebody needs there is a set of rows: a bitmap for each slot of a table of which a row changed.
// Nothing is noted before the first mark, nor after the last one was dropped; then a push pays for one comparison. A row
// that changes costs one bit, and memory is that of the pages in which bits are set, whatever the size of the tables.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/bitmap.hpp"
#include "base/bytes.hpp"
#include "store/table.hpp"

namespace ecrec {

// Rows, by table and slot.
class ChangeSet {
public:
    void add(std::size_t table_index, const Table& table, std::span<const RowPlace> rows);
    // The rows of a slot; null if there is none.
    const Bitmap* of(std::size_t table_index, std::uint32_t slot) const {
        if (table_index >= tables_.size() || slot >= tables_[table_index].size()) return nullptr;
        const Bitmap& found = tables_[table_index][slot];
        return found.bits() == 0 ? nullptr : &found;
    }
    bool has(std::size_t table_index, std::uint64_t quotient, std::uint32_t slot) const {
        const Bitmap* found = of(table_index, slot);
        return found != nullptr && found->test(quotient);
    }
    std::uint64_t rows(std::size_t table_index) const;
    std::size_t tables() const { return tables_.size(); }
    void unite(const ChangeSet& other);

private:
    std::vector<std::vector<Bitmap>> tables_;
};

class Store;

// Some of the rows of a set, all of one table, and where to go on.
struct ChangedRows {
    std::size_t table = 0;
    Growing<std::int64_t> rows{};
    std::size_t next_table = 0;  // the number of tables: there are no more
    std::uint32_t next_slot = 0;
    std::uint64_t next_quotient = 0;
};
// The next rows of a set, or of all touched rows (null), from a place on: of at most bytes_max with their weights, but of
// one row at least.
ChangedRows next_rows(const Store& store, const ChangeSet* set, std::size_t table, std::uint32_t slot,
                      std::uint64_t quotient, std::size_t bytes_max);

class Changes {
public:
    bool are_noted() const { return !stretches_.empty(); }
    // These rows are about to change. Where there is no memory for it, all marks are dropped: nobody gets a set that
    // lacks a row.
    void note(std::size_t table_index, const Table& table, std::span<const RowPlace> rows);
    // A new mark: what changes from now on comes after it. Marks rise.
    std::uint64_t mark();
    bool has(std::uint64_t mark) const;
    // Nobody needs a mark any more. Does nothing for one that is not there.
    void drop(std::uint64_t mark);
    // What changed between two marks; refuses marks that are not there. What it returns does not change any more.
    std::shared_ptr<const ChangeSet> between(std::uint64_t since, std::uint64_t until) const;
    std::size_t marks() const { return stretches_.size(); }

private:
    struct Stretch {
        std::uint64_t mark;  // that it begins with
        std::shared_ptr<ChangeSet> set;
    };
    std::vector<Stretch> stretches_;  // in order; the last one is open
    std::uint64_t newest_ = 0;
};

}  // namespace ecrec
