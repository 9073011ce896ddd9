// Coded values out of the store and back into it.
#include <algorithm>
#include <cstring>

#include "kernels/registry.hpp"
#include "base/error.hpp"
#include "store/scan_ahead.hpp"
#include "store/store.hpp"

namespace ecrec {
namespace {

void check_range(const char* where, std::uint64_t first, std::uint64_t last) {
    if (first > last)
        refuse(ErrorKind::value, where, ": first position ", first, " is after the last, ", last);
}

// As table.touched(slot).scan(first, last, visit), with the records prefetched.
template <class Visit>
bool scan_touched(const Table& table, std::uint32_t slot, std::uint64_t first, std::uint64_t last, Visit&& visit) {
    return scan_ahead(
        table.touched(slot), first, last, [&](std::uint64_t quotient) { table.prefetch_place(quotient, slot); },
        [&](std::uint64_t quotient) { prefetch_record(table.data_record(quotient, slot), table.record_bytes()); },
        visit);
}

}  // namespace

// A record's worth of memory whose padding is zero.
float* Store::initial_scratch(const Table& table) const {
    const std::size_t floats = table.record_bytes() / 4;
    if (scratch_.size() < floats) scratch_.resize(floats);
    std::fill(scratch_.begin() + static_cast<std::ptrdiff_t>(table.used_bytes() / 4),
              scratch_.begin() + static_cast<std::ptrdiff_t>(floats), 0.0f);
    return scratch_.data();
}

void Store::write_coded(const Operations& operations, const Table& table, std::uint64_t stripe,
                        std::uint64_t quotient, int slot, std::uint8_t* target) const {
    float* initial = initial_scratch(table);
    table.write_initial(operations, table.row_at(stripe, slot), initial);
    operations.difference(table.record_bytes(), table.data_record(quotient, static_cast<std::uint32_t>(slot)),
                          reinterpret_cast<const std::uint8_t*>(initial), target);
    pauses::work(pauses::step_bytes + 4 * table.record_bytes());
}

RowsBlob Store::coded_rows(int class_id, std::uint64_t first, std::uint64_t last) const {
    const int slot = data_slot(class_id);
    check_range("coded_rows", first, last);
    RowsBlob blob;
    if (slot < 0) return blob;
    const Operations& operations = ecrec::operations();
    const int residue = residue_of(class_id);
    scan_tables(class_id, first, last,
                [&](std::uint64_t index, const Table& table, std::uint64_t from, std::uint64_t to) {
                    const std::uint32_t data = static_cast<std::uint32_t>(slot);
                    to = std::min(to, table.data_extent(slot));
                    const std::size_t rows = table.touched(data).count(from, to);
                    blob.keys.make_room(rows);
                    blob.records.make_room(rows * table.record_bytes());
                    return scan_touched(table, data, from, to, [&](std::uint64_t quotient) {
                        const std::uint64_t stripe = table.stripe_at(quotient, residue);
                        blob.keys.push_back(index << stripe_bits | stripe);
                        std::uint8_t* target = blob.records.extend(table.record_bytes());
                        write_coded(operations, table, stripe, quotient, slot, target);
                        return true;
                    });
                });
    return blob;
}

void Store::check_data_keys(const char* where, std::span<const std::uint64_t> keys, bool existing) const {
    check_keys(where, keys);
    pauses::in_pieces(keys.size(), pauses::piece_rows, pauses::row_bytes / 4, [&](std::size_t first, std::size_t last) {
        for (const std::uint64_t key : keys.subspan(first, last - first)) {
            const Table& table = table_of(key);
            const int slot = place_.slot_in(place_of(key).residue);
            if (slot >= table.shape().k ||
                (existing && table.row_at(stripe_of(key), slot) >= table.shape().rows)) {
                refuse(ErrorKind::value, where, ": shard ", place_.shard, " has no data row in ", describe(key));
            }
        }
    });
}

RowsBlob Store::coded_rows_of(std::span<const std::uint64_t> keys) const {
    // A stripe that is short may be asked for: the other members' rows of it are.
    check_data_keys("coded_rows_of", keys, false);
    const Operations& operations = ecrec::operations();
    RowsBlob blob;
    for (const std::uint64_t key : keys) {
        const Table& table = table_of(key);
        const StripePlace at = place_of(key);
        const int slot = place_.slot_in(at.residue);
        if (at.quotient >= table.data_extent(slot) ||
            !table.is_touched(at.quotient, static_cast<std::uint32_t>(slot)))
            continue;
        blob.keys.push_back(key);
        write_coded(operations, table, stripe_of(key), at.quotient, slot,
                    blob.records.extend(table.record_bytes()));
    }
    return blob;
}

SeedProgress Store::seed(Window& window, int peer, int class_id, std::uint64_t rows_max,
                         std::uint64_t bytes_max) {
    if (window.store() != this) refuse(ErrorKind::value, "seed: the window belongs to another store");
    if (rows_max == 0) refuse(ErrorKind::value, "seed: rows_max is 0, expected at least 1");
    const std::uint64_t first = window.limit(peer, class_id);
    SeedProgress progress;
    const int slot = data_slot(class_id);
    if (slot >= 0) {
        const StoreCode& code = code_of(class_id);
        const int parity = place_.slot_of(peer, residue_of(class_id)) - code.k();
        if (parity < 0 || parity >= code.r())
            refuse(ErrorKind::value, "seed: shard ", peer, " holds no parity of class ", class_id);
    }
    if (slot < 0 || first == unlimited) {
        window.set_limit(peer, class_id, unlimited);
        progress.finished = true;
        return progress;
    }
    const Operations& operations = ecrec::operations();
    const std::uint32_t data = static_cast<std::uint32_t>(slot);
    const int residue = residue_of(class_id);
    RowBuffer& buffer = window.buffer(peer);
    std::uint64_t stop = unlimited;
    bool blocked = false;
    std::uint64_t rows = 0;
    std::uint64_t bytes_written = 0;
    scan_tables(
        class_id, first, unlimited,
        [&](std::uint64_t index, const Table& table, std::uint64_t from, std::uint64_t to) {
            const std::size_t bytes = table.record_bytes();
            to = std::min(to, table.data_extent(slot));
            if (from >= to) return true;
            const std::uint64_t missing = std::min(to, table.next_missing(data, from));
            const bool goes_on = scan_touched(table, data, from, missing, [&](std::uint64_t quotient) {
                if (rows == 0) buffer.check_room("seed", 1, bytes);
                // One row goes whatever its size; else a limit below it would stop the seed for ever.
                const bool full = rows != 0 && bytes_written + bytes > bytes_max;
                if (full || rows == rows_max || !buffer.has_room(1, bytes)) {
                    stop = table.offset() + quotient;
                    return false;
                }
                const std::uint64_t stripe = table.stripe_at(quotient, residue);
                // Not looked up: no delta of it is there, since those of what is not seeded are held back.
                buffer.make_room(1, bytes);
                const RowBuffer::End end = buffer.end();
                *end.key = index << stripe_bits | stripe;
                write_coded(operations, table, stripe, quotient, slot, end.record);
                buffer.extend(1, bytes);
                ++rows;
                bytes_written += bytes;
                return true;
            });
            if (!goes_on) return false;
            blocked = missing < to;
            if (blocked) stop = table.offset() + missing;
            return !blocked;
        });
    window.set_limit(peer, class_id, stop);
    progress.finished = stop == unlimited;
    if (blocked) progress.blocked = missing_keys(class_id, stop, rows_max);
    return progress;
}

Growing<std::uint64_t> Store::missing_keys(int class_id, std::uint64_t first, std::uint64_t rows_max) const {
    Growing<std::uint64_t> keys;
    const int slot = data_slot(class_id);
    if (slot < 0) return keys;
    const std::uint32_t data = static_cast<std::uint32_t>(slot);
    scan_tables(class_id, first, unlimited,
                [&](std::uint64_t index, const Table& table, std::uint64_t from, std::uint64_t to) {
                    to = std::min(to, table.data_extent(slot));
                    for (std::uint64_t quotient = from;; ++quotient) {
                        quotient = table.next_missing(data, quotient);
                        if (quotient >= to) return true;
                        if (keys.size() >= rows_max) return false;
                        keys.push_back(index << stripe_bits | table.stripe_at(quotient, residue_of(class_id)));
                        pauses::work(pauses::step_bytes);
                    }
                });
    return keys;
}

Growing<std::uint64_t> Store::missing_of(std::span<const std::uint64_t> keys, std::uint64_t rows_max) const {
    Growing<std::uint64_t> found;
    for (std::size_t i = 0; i < keys.size() && found.size() < rows_max; ++i) {
        check_data_keys("missing_of", keys.subspan(i, 1), false);  // a look at the first rows is not to pay for all
        const std::uint64_t key = keys[i];
        const StripePlace at = place_of(key);
        const std::uint32_t slot = static_cast<std::uint32_t>(place_.slot_in(at.residue));
        const Table& table = table_of(key);
        if (at.quotient < table.data_extent(static_cast<int>(slot)) && !table.is_recovered(at.quotient, slot)) {
            found.push_back(key);
        }
    }
    return found;
}

Store::MissingCounts Store::missing_counts(int class_id) const {
    MissingCounts found;
    const int slot = data_slot(class_id);
    if (slot < 0) return found;
    for (const std::uint64_t index : code_of(class_id).tables) {
        const std::uint64_t missing = tables_[index].missing(static_cast<std::uint32_t>(slot));
        if (missing == 0) continue;
        found.tables.push_back(static_cast<std::int32_t>(index));
        found.counts.push_back(static_cast<std::int64_t>(missing));
    }
    return found;
}

void Store::restore(std::span<const std::uint64_t> keys, std::span<const std::uint8_t> coded) {
    if (snapshot_ != nullptr) refuse(ErrorKind::state, "restore: a snapshot is being copied out; close it first");
    if (copying_ != nullptr) refuse(ErrorKind::state, "restore: the store is being copied; close the copy first");
    check_blob("restore", keys, coded.size());
    check_data_keys("restore", keys, false);
    const Operations& operations = ecrec::operations();
    const std::uint8_t* checked = coded.data();
    // Rows of one slot of a table whose places ascend.
    struct Rows {
        const Table* table = nullptr;
        std::uint32_t slot = 0;
        std::uint64_t first = 0, last = 0, count = 0;
    } rows;
    const auto expect = [&] {
        if (rows.table != nullptr) rows.table->expect(rows.slot, rows.first, rows.last, rows.count);
    };
    for (const std::uint64_t key : keys) {
        const Table& table = table_of(key);
        const StripePlace at = place_of(key);
        const std::uint32_t slot = static_cast<std::uint32_t>(place_.slot_in(at.residue));
        if (rows.table != &table || rows.slot != slot || at.quotient < rows.last) {
            expect();
            rows = {&table, slot, at.quotient, at.quotient, 0};
        }
        rows.last = at.quotient + 1;
        ++rows.count;
        // Whoever decodes need not know which stripe is short: where it has no row, the result is zeros.
        if (at.quotient >= table.data_extent(static_cast<int>(slot)) &&
            !operations.is_zero(table.record_bytes(), checked)) {
            refuse(ErrorKind::value, "restore: shard ", place_.shard, " has no data row in ", describe(key),
                   ", but its coded value is not zero");
        }
        checked += table.record_bytes();
        pauses::work(pauses::row_bytes);
    }
    expect();
    // Rows that follow one another in a slot are marked together: `run` are restored, and not yet marked.
    struct Run {
        Table* table = nullptr;
        std::uint32_t slot = 0;
        std::uint64_t first = 0, last = 0;
    } run;
    const auto mark = [&] {
        if (run.table != nullptr) run.table->mark_recovered_range(run.slot, run.first, run.last);
        run.table = nullptr;
    };
    const std::uint8_t* source = coded.data();
    for (const std::uint64_t key : keys) {
        Table& table = tables_[key >> stripe_bits];
        const std::size_t bytes = table.record_bytes();
        const StripePlace at = place_of(key);
        const std::uint32_t slot = static_cast<std::uint32_t>(place_.slot_in(at.residue));
        if (run.table != &table || run.slot != slot || run.last != at.quotient) mark();
        if (at.quotient < table.data_extent(static_cast<int>(slot)) &&
            !table.is_recovered(at.quotient, slot)) {
            // A row that is at its initial value needs no memory.
            if (!operations.is_zero(bytes, source)) {
                pauses::work(pauses::new_page_bytes + 4 * bytes);
                const RowPlace place{at.quotient, static_cast<std::uint32_t>(at.residue), slot};
                changes_.note(key >> stripe_bits, table, {&place, 1});
                xor_into(table.touch(operations, at.quotient, static_cast<std::uint32_t>(at.residue), slot),
                         source, bytes);
            }
            if (run.table == nullptr) run = {&table, slot, at.quotient, at.quotient};
            ++run.last;
        } else {
            mark();
        }
        source += bytes;
        pauses::work(pauses::step_bytes);
    }
    mark();
}

void Store::put(std::span<const std::uint64_t> keys, std::span<const std::uint8_t> records) {
    if (snapshot_ != nullptr || copying_ != nullptr)
        refuse(ErrorKind::state, "put: the store is being copied itself; close the copy first");
    check_blob("put", keys, records.size());
    for (const std::uint64_t key : keys) {
        const Table& table = table_of(key);
        const StripePlace at = place_of(key);
        const int slot = place_.slot_in(at.residue), parity = slot - table.shape().k;
        const bool exists = parity < 0 ? at.quotient < table.data_extent(slot)
                                       : parity < table.shape().r && at.quotient < table.parity_extent(parity);
        if (!exists) refuse(ErrorKind::value, "put: shard ", place_.shard, " has no row in ", describe(key));
        pauses::work(pauses::row_bytes);
    }
    release_dropped();
    const Operations& operations = ecrec::operations();
    const std::uint8_t* source = records.data();
    std::size_t new_rows = 0;
    for (const std::uint64_t key : keys) {
        Table& table = tables_[key >> stripe_bits];
        const StripePlace at = place_of(key);
        const std::size_t bytes = table.record_bytes();
        const int slot = place_.slot_in(at.residue), parity = slot - table.shape().k;
        if (parity < 0) {
            const RowPlace place{at.quotient, static_cast<std::uint32_t>(at.residue), static_cast<std::uint32_t>(slot)};
            changes_.note(key >> stripe_bits, table, {&place, 1});
        }
        std::uint8_t* target = parity < 0 ? table.touch(operations, at.quotient, static_cast<std::uint32_t>(at.residue),
                                                        static_cast<std::uint32_t>(slot))
                                          : table.touch_parity(at.quotient, parity, new_rows);
        std::memcpy(target, source, bytes);
        source += bytes;
        pauses::work(pauses::new_page_bytes + 4 * bytes);
    }
}

void Store::mark_recovered(int class_id, std::uint64_t first, std::uint64_t last) {
    const int slot = data_slot(class_id);
    check_range("mark_recovered", first, last);
    if (slot < 0) return;
    scan_tables(class_id, first, last,
                [&](std::uint64_t index, const Table& table, std::uint64_t from, std::uint64_t to) {
                    tables_[index].mark_recovered_range(static_cast<std::uint32_t>(slot), from,
                                                        std::min(to, table.data_extent(slot)));
                    return true;
                });
}

void Store::mark_recovered_keys(std::span<const std::uint64_t> keys) {
    check_data_keys("mark_recovered_keys", keys, true);
    for (const std::uint64_t key : keys) {
        const StripePlace at = place_of(key);
        tables_[key >> stripe_bits].mark_recovered(at.quotient,
                                                   static_cast<std::uint32_t>(place_.slot_in(at.residue)));
        pauses::work(pauses::step_bytes);
    }
}

std::int64_t Store::next_missing(int class_id, std::uint64_t first) const {
    const int slot = data_slot(class_id);
    std::int64_t found = -1;
    if (slot < 0) return found;
    scan_tables(class_id, first, unlimited,
                [&](std::uint64_t, const Table& table, std::uint64_t from, std::uint64_t to) {
                    to = std::min(to, table.data_extent(slot));
                    const std::uint64_t quotient = table.next_missing(static_cast<std::uint32_t>(slot), from);
                    if (from >= to || quotient >= to) return true;
                    found = static_cast<std::int64_t>(table.offset() + quotient);
                    return false;
                });
    return found;
}

}  // namespace ecrec
