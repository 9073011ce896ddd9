#include "store/snapshot.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/error.hpp"
#include "store/scan_ahead.hpp"
#include "store/store.hpp"
#include "threads/pauses.hpp"

namespace ecrec {

Snapshot::Snapshot(std::shared_ptr<Store> store, std::vector<std::vector<std::size_t>> columns,
                   const std::optional<Marks>& changed)
    : store_(std::move(store)) {
    if (columns.size() != store_->tables()) {
        refuse(ErrorKind::value, "Snapshot: got columns of ", columns.size(), " tables, the store has ",
               store_->tables());
    }
    if (changed) changed_ = store_->changes().between(changed->since, changed->until);
    parts_.resize(columns.size());
    for (std::size_t i = 0; i < columns.size(); ++i) {
        const Table& table = store_->table(static_cast<int>(i));
        const std::size_t bytes = std::accumulate(columns[i].begin(), columns[i].end(), std::size_t{0});
        if (bytes != table.used_bytes()) {
            refuse(ErrorKind::value, "Snapshot: columns of table ", i, " have ", bytes, " bytes, expected ",
                   table.used_bytes());
        }
        if (table.missing() != 0) {
            refuse(ErrorKind::state, "Snapshot: ", table.missing(), " rows of table ", i, " are not recovered yet");
        }
        parts_[i].columns = std::move(columns[i]);
        for (std::uint32_t slot = 0; slot < static_cast<std::uint32_t>(table.shape().k); ++slot) {
            parts_[i].copied.emplace_back(table.data_extent(static_cast<int>(slot)));
        }
        rows_ += changed_ == nullptr ? table.data_rows_touched() : changed_->rows(i);
    }
    store_->begin_snapshot(this);
}

Snapshot::~Snapshot() { store_->end_snapshot(this); }

void Snapshot::close() {
    store_->end_snapshot(this);
    parts_.clear();
    changed_.reset();
    reading_ = 0;
    kept_ = 0;
}

void Snapshot::before_change(std::size_t table_index, const Table& table, std::span<const RowPlace> rows) {
    if (table_index >= parts_.size()) return;  // a table that was added since
    Part& part = parts_[table_index];
    std::size_t kept = 0;
    for (const RowPlace& row : rows) {
        if (!wants(table_index, row)) continue;
        if (!part.copied[row.slot].set(row.quotient) || !table.is_touched(row.quotient, row.slot)) continue;
        const std::uint64_t stripe = table.stripe_at(row.quotient, static_cast<int>(row.residue));
        part.kept_ids.push_back(static_cast<std::int64_t>(table.row_at(stripe, static_cast<int>(row.slot))));
        std::memcpy(part.kept.extend(table.used_bytes()), table.data_record(row.quotient, row.slot),
                    table.used_bytes());
        ++kept;
    }
    kept_ += kept * table.used_bytes();
    pauses::work(kept * (pauses::step_bytes + 2 * table.used_bytes()));
}

std::size_t Snapshot::rows_of(const Table& table, std::size_t bytes) const {
    return std::max<std::size_t>(bytes / (8 + table.used_bytes()), 1);
}

Snapshot::Chunk Snapshot::take(std::size_t bytes_max) {
    const auto of = [&](std::size_t i) -> const Table& { return store_->table(static_cast<int>(i)); };
    std::size_t most = parts_.size(), most_bytes = 0;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
        if (parts_[i].kept.size() > most_bytes) most = i, most_bytes = parts_[i].kept.size();
    }
    if (most_bytes >= bytes_max / 2 && most_bytes != 0) return take_kept(most, rows_of(of(most), bytes_max));
    for (; reading_ < parts_.size(); ++reading_) {
        Chunk chunk = read(reading_, rows_of(of(reading_), bytes_max));
        if (chunk.rows != 0) return chunk;
    }
    if (most_bytes != 0) return take_kept(most, rows_of(of(most), bytes_max));
    return {};
}

// The last ones, so that the others need not move.
Snapshot::Chunk Snapshot::take_kept(std::size_t table_index, std::size_t rows_max) {
    Part& part = parts_[table_index];
    const std::size_t bytes = store_->table(static_cast<int>(table_index)).used_bytes();
    const std::size_t rows = std::min(part.kept_ids.size(), rows_max), first = part.kept_ids.size() - rows;
    std::vector<const std::uint8_t*> records(rows);
    for (std::size_t i = 0; i < rows; ++i) records[i] = part.kept.data() + (first + i) * bytes;
    Chunk chunk;
    chunk.table = table_index;
    fill(chunk, part, {part.kept_ids.data() + first, rows}, records);
    part.kept_ids.shrink_to(first);
    part.kept.shrink_to(first * bytes);
    kept_ -= rows * bytes;
    taken_ += rows;
    return chunk;
}

Snapshot::Chunk Snapshot::read(std::size_t table_index, std::size_t rows_max) {
    Part& part = parts_[table_index];
    const Table& table = store_->table(static_cast<int>(table_index));
    std::vector<std::int64_t> ids;
    std::vector<const std::uint8_t*> records;
    const std::uint32_t slots = static_cast<std::uint32_t>(table.shape().k);
    const ShardPlace& place = store_->place();
    for (; part.slot < slots && records.size() < rows_max; part.slot += part.quotient == 0 ? 1 : 0) {
        const Bitmap* wanted = changed_ == nullptr ? &table.touched(part.slot) : changed_->of(table_index, part.slot);
        if (wanted == nullptr) continue;
        Bitmap& copied = part.copied[part.slot];
        const int residue = (place.shard - static_cast<int>(part.slot) + place.shards) % place.shards;
        const std::uint64_t extent = table.data_extent(static_cast<int>(part.slot));
        const bool ended = scan_ahead(
            *wanted, part.quotient, extent, [&](std::uint64_t quotient) { table.prefetch_place(quotient, part.slot); },
            [&](std::uint64_t quotient) {
                prefetch_record(table.data_record(quotient, part.slot), table.used_bytes());
            },
            [&](std::uint64_t quotient) {
                if (records.size() == rows_max) {
                    part.quotient = quotient;  // the first of the next chunk
                    return false;
                }
                if (!copied.set(quotient)) return true;
                const std::uint64_t stripe = table.stripe_at(quotient, residue);
                ids.push_back(static_cast<std::int64_t>(table.row_at(stripe, static_cast<int>(part.slot))));
                records.push_back(table.data_record(quotient, part.slot));
                return true;
            });
        if (ended) part.quotient = 0;
    }
    Chunk chunk;
    chunk.table = table_index;
    fill(chunk, part, ids, records);
    taken_ += records.size();
    return chunk;
}

void Snapshot::fill(Chunk& chunk, const Part& part, std::span<const std::int64_t> ids,
                    std::span<const std::uint8_t* const> records) const {
    chunk.rows = ids.size();
    if (ids.empty()) return;
    const std::size_t record = std::accumulate(part.columns.begin(), part.columns.end(), std::size_t{0});
    chunk.bytes.reserve(ids.size() * (8 + record));
    std::memcpy(chunk.bytes.extend(8 * ids.size()), ids.data(), 8 * ids.size());
    std::size_t offset = 0;
    for (const std::size_t width : part.columns) {
        std::uint8_t* target = chunk.bytes.extend(width * ids.size());
        const std::size_t piece =
            std::clamp<std::size_t>(pauses::piece_bytes / std::max<std::size_t>(width, 1), 1, pauses::piece_rows);
        pauses::in_pieces(ids.size(), piece, pauses::step_bytes + 2 * width, [&](std::size_t first, std::size_t last) {
            for (std::size_t i = first; i < last; ++i) {
                std::memcpy(target + i * width, records[i] + offset, width);
            }
        });
        offset += width;
    }
}

}  // namespace ecrec
