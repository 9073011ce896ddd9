// All tables of one shard. Every call checks its arguments before the first byte is changed and throws
// StoreError.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "codec/code.hpp"
#include "kernels/operations.hpp"
#include "base/in_use.hpp"
#include "store/copying.hpp"
#include "store/row_buffer.hpp"
#include "store/changes.hpp"
#include "store/snapshot.hpp"
#include "store/table.hpp"
#include "store/window.hpp"
#include "threads/pauses.hpp"

namespace ecrec {

// A code of the store, and the tables that have it.
struct StoreCode {
    Code code;
    std::vector<std::uint64_t> tables{};  // in order
    std::uint64_t positions = 0;          // of each class

    int k() const { return code.k(); }
    int r() const { return code.r(); }
};

// Rows of several tables, section after section.
struct Sections {
    std::span<const std::int32_t> tables;
    std::span<const std::int64_t> counts;
    std::span<const std::int64_t> rows;
};

struct TableOptions {
    std::int64_t rows = 0;
    std::int64_t dim = 0;
    int k = 1;
    int r = 0;
    std::string generator;
    std::string optimizer;
    std::vector<double> hyper;
    std::string initial;
    std::uint64_t initial_seed = 0;
    double initial_scale = 0;
    double initial_state = 0;
    bool recovered = true;
    double weight_decay = 0;
    bool decoupled = false;   // w *= 1 - lr * weight_decay, not g += weight_decay * w
    double max_gradient = 0;  // 0: gradients are not cut off
};

struct MemoryUse {
    std::uint64_t data_rows_touched = 0, parity_rows_touched = 0;
    std::uint64_t data_bytes_reserved = 0, parity_bytes_reserved = 0;
    std::uint64_t data_bytes_touched = 0, parity_bytes_touched = 0;
};

struct SeedProgress {
    bool finished = false;
    Growing<std::uint64_t> blocked;
};

class Store {
public:
    Store(int shard, int shards, int group, int groups);

    // -- tables, codes, keys (store.cpp)
    int add_table(const TableOptions& options);
    std::size_t tables() const { return tables_.size(); }
    const Table& table(int index) const { return tables_[checked_table("record_bytes", index)]; }
    const std::vector<StoreCode>& codes() const { return codes_; }
    const ShardPlace& place() const { return place_; }
    std::uint64_t class_size(int class_id) const;
    MemoryUse memory() const;
    // Looks at the next `extents` of 2 MiB of all tables, in turn, and moves those of which most is touched into huge
    // pages; a table that ends, or has nothing more that is touched, counts as one, too. False: a look at all of them
    // moved nothing, and the next one may wait; or the system cannot do it at all, and nothing more is tried. What it
    // cannot do at the moment is tried again in the next look.
    bool use_huge_pages(std::size_t extents);
    // There are no tables any more; gives back a part of their memory. False when nothing of it is left. Nothing that was
    // made of the store may be there.
    bool give_up();

    void check_peer(int peer) const;
    void check_class(int class_id) const;
    // Every key names a stripe of a table that exists.
    void check_keys(const char* where, std::span<const std::uint64_t> keys) const;
    // And there are exactly as many bytes as their records have.
    void check_blob(const char* where, std::span<const std::uint64_t> keys, std::size_t bytes) const;
    std::string describe(std::uint64_t key) const;

    // Of checked keys and classes:
    const Table& table_of(std::uint64_t key) const { return tables_[key >> stripe_bits]; }
    static std::uint64_t stripe_of(std::uint64_t key) {
        return key & ((std::uint64_t{1} << stripe_bits) - 1);
    }
    StripePlace place_of(std::uint64_t key) const { return table_of(key).stripe_place(stripe_of(key)); }
    int class_of(std::uint64_t key) const {
        return table_of(key).code() * place_.shards + place_of(key).residue;
    }
    std::uint64_t position_of(std::uint64_t key) const {
        return table_of(key).offset() + place_of(key).quotient;
    }
    int residue_of(int class_id) const { return class_id % place_.shards; }
    const StoreCode& code_of(int class_id) const {
        return codes_[static_cast<std::size_t>(class_id / place_.shards)];
    }
    // Which parity of the class this shard holds; refuses a class of no code, or one of which it holds none.
    int parity_index(int class_id) const;

    // Calls visit(table index, table, first quotient, last quotient) for each table of the class that has
    // positions in [first, last), until it returns false; returns false if it did. A class of no code has
    // none.
    template <class Visit>
    bool scan_tables(int class_id, std::uint64_t first, std::uint64_t last, Visit&& visit) const {
        const std::size_t code = static_cast<std::size_t>(class_id / place_.shards);
        if (code >= codes_.size()) return true;
        for (const std::uint64_t index : codes_[code].tables) {
            const Table& table = tables_[index];
            const std::uint64_t offset = table.offset();
            if (offset >= last || offset + table.quotients() <= first) continue;
            const std::uint64_t from = first > offset ? first - offset : 0;
            const std::uint64_t to = last - offset < table.quotients() ? last - offset : table.quotients();
            if (!visit(index, table, from, to)) return false;
        }
        return true;
    }

    // -- rows for workers (rows.cpp)
    void gather(const Sections& sections, bool records, std::span<std::uint8_t> out) const;
    std::uint64_t gather_bytes(std::span<const std::int32_t> tables, std::span<const std::int64_t> counts,
                               bool records) const;
    Growing<std::uint64_t> missing(const Sections& sections) const;
    void check(const Sections& sections, std::span<const float> values);
    // rates: a learning rate for each of sections.tables, which replaces the table's own for this step, or nothing.
    void apply(const Sections& sections, std::span<const float> gradients, Window* window,
               std::span<const double> rates = {});
    void assign(const Sections& sections, std::span<const float> values, Window* window);
    // Whole records: weights and state as floats, without padding, such as a checkpoint has them.
    void assign_records(const Sections& sections, std::span<const float> records, Window* window);
    Growing<std::uint64_t> keys(const Sections& sections) const;
    // Each of the keys once, in order of first occurrence, without those of `known`. Any numbers do.
    Growing<std::uint64_t> distinct(std::span<const std::uint64_t> keys, std::span<const std::uint64_t> known) const;

    // -- parity (parity.cpp)
    void fold(int source, std::uint64_t class_mask, std::span<const std::uint64_t> keys,
              std::span<const std::uint8_t> records);
    void wipe_parity(int class_id);
    std::uint64_t span(int class_id, std::uint64_t first, std::uint64_t last, std::uint64_t rows_max,
                       std::uint64_t bytes_max) const;

    // -- recovery (recovery.cpp)
    RowsBlob coded_rows(int class_id, std::uint64_t first, std::uint64_t last) const;
    RowsBlob coded_rows_of(std::span<const std::uint64_t> keys) const;
    SeedProgress seed(Window& window, int peer, int class_id, std::uint64_t rows_max, std::uint64_t bytes_max);
    void restore(std::span<const std::uint64_t> keys, std::span<const std::uint8_t> coded);
    void mark_recovered(int class_id, std::uint64_t first, std::uint64_t last);
    void mark_recovered_keys(std::span<const std::uint64_t> keys);
    std::int64_t next_missing(int class_id, std::uint64_t first) const;
    // How many rows of the class are not yet recovered, by table; tables without any are left out.
    struct MissingCounts {
        Growing<std::int32_t> tables;
        Growing<std::int64_t> counts;
    };
    MissingCounts missing_counts(int class_id) const;
    // Those of these keys whose rows are not yet recovered, in order, the first rows_max of them.
    Growing<std::uint64_t> missing_of(std::span<const std::uint64_t> keys, std::uint64_t rows_max) const;
    // Keys of those at or after a position, in order of position, at most rows_max.
    Growing<std::uint64_t> missing_keys(int class_id, std::uint64_t first, std::uint64_t rows_max) const;

    // -- copies that are taken while rows change (snapshot.hpp)
    void begin_snapshot(Snapshot* snapshot);
    void end_snapshot(const Snapshot* snapshot);

    // Which rows changed (changes.hpp).
    Changes& changes() { return changes_; }
    const Changes& changes() const { return changes_; }
    void begin_copying(Copying* copying);
    void end_copying(const Copying* copying);
    // Rows that `Copying` handed out, of a store of the same shard: these are the records from now on.
    void put(std::span<const std::uint64_t> keys, std::span<const std::uint8_t> records);

    // For those that call from several threads.
    InUse& in_use() const { return in_use_; }
    // Who is told in the middle of long calls, of this store and of what is made of it.
    pauses::Listener& listener() const { return listener_; }

private:
    std::size_t checked_table(const char* where, std::int64_t index) const;
    void check_sections(const char* where, const Sections& sections) const;
    // Where each row of a table lies; refuses ids out of range, of other shards, and (on request) not recovered.
    void find_rows(const char* where, std::size_t table, std::span<const std::int64_t> ids, bool recovered,
                   RowPlace* places) const;
    // Fills places_ with where each row of the sections lies.
    void resolve(const char* where, const Sections& sections, bool recovered) const;
    void check_rates(const Sections& sections, std::span<const double> rates) const;
    void check_values(const char* where, const Sections& sections, std::span<const float> values, bool records,
                      const Window* window) const;
    void copy_out(std::size_t table, std::span<const std::int64_t> ids, std::size_t bytes, std::uint8_t* target) const;
    void set_values(const Sections& sections, std::span<const float> values, bool records, Window* window);
    // records: values are whole records.
    template <class ShapeOf, class Step>
    void update(const Sections& sections, std::span<const float> values, bool records, Window* window,
                ShapeOf&& shape_of, Step&& step);
    void before_change(std::size_t table_index, const Table& table, std::span<const RowPlace> rows) {
        if (snapshot_ != nullptr) snapshot_->before_change(table_index, table, rows);
        changes_.note(table_index, table, rows);
    }
    // Slot of this shard's data row in each stripe; refuses stripes in which it has none.
    void check_data_keys(const char* where, std::span<const std::uint64_t> keys, bool existing) const;
    int data_slot(int class_id) const;  // -1 if none
    // target = record XOR initial record of a touched row.
    void write_coded(const Operations& operations, const Table& table, std::uint64_t stripe,
                     std::uint64_t quotient, int slot, std::uint8_t* target) const;
    float* initial_scratch(const Table& table) const;
    // Gives back a part of what was dropped.
    void release_dropped();

    ShardPlace place_;
    std::vector<Table> tables_;
    std::vector<StoreCode> codes_;
    Snapshot* snapshot_ = nullptr;  // that is being copied out
    Changes changes_;
    Copying* copying_ = nullptr;    // that is told of each row that changes
    bool huge_pages_ = true;
    std::size_t huge_table_ = 0, huge_extent_ = 0;  // what is looked at next
    bool huge_moved_ = false;                       // something was moved since the first table
    std::vector<Mapping> dropped_;  // given back bit by bit, so that no call takes long
    mutable InUse in_use_;
    mutable pauses::Listener listener_;
    // Kept between calls for their memory only.
    mutable Growing<RowPlace> places_;
    mutable std::vector<float> scratch_;
    Growing<float*> records_;
    Growing<std::uint8_t> beside_;
};

}  // namespace ecrec
