// What a shard does with other shards' deltas.
#include <algorithm>
#include <array>
#include <vector>

#include "codec/fold_rows.hpp"
#include "store/error.hpp"
#include "store/store.hpp"
#include "threads/pool.hpp"

namespace ecrec {

void Store::fold(int source, std::uint64_t class_mask, std::span<const std::uint64_t> keys,
                 std::span<const std::uint8_t> records) {
    check_peer(source);
    check_blob("fold", keys, records.size());
    for (const std::uint64_t key : keys) {
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
    // Runs of rows with one coefficient and one length go to the kernel at once; the parity rows of a later batch are
    // on their way while those of one are folded into. Several threads take part in one large batch.
    constexpr std::size_t small_batch = 64;
    struct Batch {
        std::vector<std::uint8_t*> targets;
        std::vector<const std::uint8_t*> sources;
        std::vector<const Coefficient*> coefficients;
        std::vector<std::size_t> bytes;
    };
    const std::size_t batch = threads::parts_of(records.size(), threads::grain_bytes) > 1 ? keys.size() : small_batch;
    const std::uint8_t* record = records.data();
    const auto fill = [&](Batch& to, std::size_t first) {
        to.targets.clear();
        to.sources.clear();
        to.coefficients.clear();
        to.bytes.clear();
        for (const std::uint64_t key : keys.subspan(first, std::min(batch, keys.size() - first))) {
            Table& table = tables_[key >> stripe_bits];
            const StripePlace at = table.stripe_place(stripe_of(key));
            const int class_id = table.code() * place_.shards + at.residue;
            const std::size_t bytes = table.record_bytes();
            if (class_mask >> class_id & 1) {
                const int parity = place_.slot_in(at.residue) - table.shape().k;
                const Code& code = code_of(class_id).code;
                to.targets.push_back(table.touch_parity(at.quotient, parity));
                to.sources.push_back(record);
                to.coefficients.push_back(&code.coefficient(parity, place_.slot_of(source, at.residue)));
                to.bytes.push_back(bytes);
                if (batch == small_batch) prefetch_write(to.targets.back(), std::min<std::size_t>(bytes, 1024));
            }
            record += bytes;
        }
    };
    std::array<Batch, 2> batches;
    if (!keys.empty()) fill(batches[0], 0);
    for (std::size_t first = 0; first < keys.size(); first += batch) {
        const Batch& now = batches[first / batch % 2];
        if (first + batch < keys.size()) fill(batches[(first / batch + 1) % 2], first + batch);
        std::size_t rows = 0;
        for (std::size_t m = 0; m < now.targets.size(); m += rows) {
            for (rows = 1; m + rows < now.targets.size(); ++rows) {
                if (now.bytes[m + rows] != now.bytes[m] || now.coefficients[m + rows] != now.coefficients[m]) break;
            }
            fold_rows(now.bytes[m], *now.coefficients[m], std::span(now.sources).subspan(m, rows),
                      std::span(now.targets).subspan(m, rows));
        }
    }
}

void Store::wipe_parity(int class_id) {
    check_class(class_id);
    const std::size_t code = static_cast<std::size_t>(class_id / place_.shards);
    if (code >= codes_.size()) return;
    const int index = place_.slot_in(residue_of(class_id)) - codes_[code].k();
    if (index < 0 || index >= codes_[code].r()) return;
    for (const std::uint64_t table : codes_[code].tables) tables_[table].wipe_parity(index);
}

std::uint64_t Store::span(int class_id, std::uint64_t first, std::uint64_t last,
                          std::uint64_t rows_max) const {
    const int index = parity_index(class_id);
    if (first >= last)
        refuse(ErrorKind::value, "span: first position ", first, " is not before the last, ", last);
    std::uint64_t end = last;
    std::uint64_t rows = 0;
    scan_tables(class_id, first, last,
                [&](std::uint64_t, const Table& table, std::uint64_t from, std::uint64_t to) {
                    const Bitmap& touched = table.parity_touched(index);
                    return scan_bits(
                        from, to, [&](std::uint64_t word) { return touched.word(word); },
                        [&](std::uint64_t quotient) {
                            if (rows++ < rows_max) return true;
                            end = std::max(table.offset() + quotient, first + 1);
                            return false;
                        });
                });
    return end;
}

}  // namespace ecrec
