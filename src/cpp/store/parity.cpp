// What a shard does with other shards' deltas.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "codec/fold_rows.hpp"
#include "base/error.hpp"
#include "store/store.hpp"
#include "store/tuning.hpp"
#include "threads/pauses.hpp"
#include "threads/pool.hpp"

namespace ecrec {

void Store::fold(int source, std::uint64_t class_mask, std::span<const std::uint64_t> keys,
                 std::span<const std::uint8_t> records) {
    check_peer(source);
    check_blob("fold", keys, records.size());
    pauses::in_pieces(keys.size(), pauses::piece_rows, pauses::row_bytes / 2, [&](std::size_t first, std::size_t last) {
        for (const std::uint64_t key : keys.subspan(first, last - first)) {
            const Table& table = table_of(key);
            const int residue = place_of(key).residue;
            const int parity = place_.slot_in(residue) - table.shape().k;
            if (parity < 0 || parity >= table.shape().r) {
                refuse(ErrorKind::value, "fold: shard ", place_.shard, " holds no parity of ", describe(key));
            }
            const int slot = place_.slot_of(source, residue);
            if (slot >= table.shape().k || table.row_at(stripe_of(key), slot) >= table.shape().rows) {
                refuse(ErrorKind::value, "fold: shard ", source, " has no data row in ", describe(key));
            }
        }
    });
    release_dropped();
    // Runs of rows with one coefficient and one length go to the kernel at once; the parity rows of a later batch are
    // on their way while those of one are folded into. Several threads take part in large batches.
    const std::size_t small_batch = tuning.fold_batch_rows;
    struct Batch {
        std::vector<std::uint8_t*> targets;
        std::vector<const std::uint8_t*> sources;
        std::vector<const Coefficient*> coefficients;
        std::vector<std::size_t> bytes;
        std::size_t keys = 0, new_rows = 0;
    };
    constexpr std::size_t new_rows_max = 256;
    const bool divides = threads::parts_of(records.size(), threads::grain_bytes) > 1;
    const std::size_t batch_rows = divides ? tuning.fold_batch_rows_threads.load() : small_batch;
    // Wide rows: no call pauses in a batch.
    const std::size_t mean_bytes = records.size() / std::max<std::size_t>(keys.size(), 1) + 1;
    const std::size_t batch = std::clamp<std::size_t>(tuning.run_bytes_max / mean_bytes, 1, batch_rows);
    const std::uint8_t* record = records.data();
    std::size_t filled = 0;
    const auto fill_next = [&](Batch& to) {
        to.targets.clear();
        to.sources.clear();
        to.coefficients.clear();
        to.bytes.clear();
        const std::size_t first = filled, last = first + std::min(batch, keys.size() - first);
        std::size_t next = first, new_rows = 0;
        // Rows that were never touched take far longer than others.
        for (; next < last && new_rows < new_rows_max; ++next) {
            const std::uint64_t key = keys[next];
            Table& table = tables_[key >> stripe_bits];
            const StripePlace at = table.stripe_place(stripe_of(key));
            const int class_id = table.code() * place_.shards + at.residue;
            const std::size_t bytes = table.record_bytes();
            if (class_mask >> class_id & 1) {
                const int parity = place_.slot_in(at.residue) - table.shape().k;
                const Code& code = code_of(class_id).code;
                to.targets.push_back(table.touch_parity(at.quotient, parity, new_rows));
                if (copying_ != nullptr) copying_->changed_parity(key >> stripe_bits, at.quotient, parity);
                to.sources.push_back(record);
                to.coefficients.push_back(&code.coefficient(parity, place_.slot_of(source, at.residue)));
                to.bytes.push_back(bytes);
                if (!divides) prefetch_write(to.targets.back(), std::min<std::size_t>(bytes, 1024));
            }
            record += bytes;
        }
        filled = next;
        to.keys = next - first;
        to.new_rows = new_rows;
    };
    std::array<Batch, 2> batches;
    fill_next(batches[0]);
    for (std::size_t number = 0; batches[number % 2].keys != 0; ++number) {
        const Batch& now = batches[number % 2];
        fill_next(batches[(number + 1) % 2]);
        std::size_t rows = 0;
        for (std::size_t m = 0; m < now.targets.size(); m += rows) {
            for (rows = 1; m + rows < now.targets.size(); ++rows) {
                if (now.bytes[m + rows] != now.bytes[m] || now.coefficients[m + rows] != now.coefficients[m]) break;
            }
            fold_rows(now.bytes[m], *now.coefficients[m], std::span(now.sources).subspan(m, rows),
                      std::span(now.targets).subspan(m, rows));
        }
        pauses::work(now.keys * pauses::row_bytes + now.targets.size() * (pauses::step_bytes + 2 * mean_bytes) +
                     now.new_rows * (pauses::new_page_bytes + mean_bytes));
    }
}

void Store::wipe_parity(int class_id) {
    check_class(class_id);
    const std::size_t code = static_cast<std::size_t>(class_id / place_.shards);
    if (code >= codes_.size()) return;
    const int index = place_.slot_in(residue_of(class_id)) - codes_[code].k();
    if (index < 0 || index >= codes_[code].r()) return;
    if (copying_ != nullptr) refuse(ErrorKind::state, "wipe_parity: the store is being copied; close the copy first");
    release_dropped();
    for (const std::uint64_t table : codes_[code].tables) {
        Mapping dropped = tables_[table].wipe_parity(index);
        if (dropped.size() != 0) dropped_.push_back(std::move(dropped));
    }
}

std::uint64_t Store::span(int class_id, std::uint64_t first, std::uint64_t last,
                          std::uint64_t rows_max, std::uint64_t bytes_max) const {
    const int index = parity_index(class_id);
    if (first >= last)
        refuse(ErrorKind::value, "span: first position ", first, " is not before the last, ", last);
    std::uint64_t end = last;
    std::uint64_t rows = 0;
    std::uint64_t bytes = 0;
    scan_tables(class_id, first, last,
                [&](std::uint64_t, const Table& table, std::uint64_t from, std::uint64_t to) {
                    const Bitmap& touched = table.parity_touched(index);
                    return touched.scan(from, to, [&](std::uint64_t quotient) {
                        bytes += table.record_bytes();
                        ++rows;
                        if (rows <= rows_max && (rows == 1 || bytes <= bytes_max)) return true;
                        end = std::max(table.offset() + quotient, first + 1);
                        return false;
                    });
                });
    return end;
}

}  // namespace ecrec
