// What a shard does with other shards' deltas.
#include <algorithm>

#include "kernels/registry.hpp"
#include "store/error.hpp"
#include "store/store.hpp"

namespace ecrec {

void Store::fold(int source, std::uint64_t class_mask, std::span<const std::uint64_t> keys,
                 std::span<const std::uint8_t> records) {
    constexpr std::size_t prefetch_rows = 8;
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
    const Operations& operations = ecrec::operations();
    const auto parity_of = [&](const Table& table, const StripePlace& at) {
        return place_.slot_in(at.residue) - table.shape().k;
    };
    const std::uint8_t* record = records.data();
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (i + prefetch_rows < keys.size()) {
            const std::uint64_t later = keys[i + prefetch_rows];
            const StripePlace at = place_of(later);
            const Table& table = table_of(later);
            prefetch_write(table.parity_record(at.quotient, parity_of(table, at)),
                           std::min<std::size_t>(table.record_bytes(), 1024));
        }
        Table& table = tables_[keys[i] >> stripe_bits];
        const StripePlace at = table.stripe_place(stripe_of(keys[i]));
        const int class_id = table.code() * place_.shards + at.residue;
        if (class_mask >> class_id & 1) {
            const int parity = parity_of(table, at);
            const Coefficient& coefficient =
                code_of(class_id).code.coefficient(parity, place_.slot_of(source, at.residue));
            operations.fold(table.record_bytes(), coefficient, record,
                            table.touch_parity(at.quotient, parity));
        }
        record += table.record_bytes();
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
