#include "store/deltas.hpp"

#include <cstring>

namespace ecrec {
namespace {

constexpr std::size_t line = 64;  // of caches

}  // namespace

// Who takes deltas of a class is decided once a section, not once a row.
void Deltas::begin(const Table& table, std::uint64_t table_index) {
    table_ = &table;
    table_index_ = table_index;
    targets_.clear();
    if (window_ == nullptr) return;
    const int n = place_.shards;
    for (int residue = 0; residue < n; ++residue) {
        const int parities = place_.slot_in(residue) < table.shape().k ? table.shape().r : 0;
        for (int parity = 0; parity < parities; ++parity) {
            const int peer = (residue + table.shape().k + parity) % n;
            const std::uint64_t limit = window_->limit(peer, table.code() * n + residue);
            if (limit > table.offset()) targets_.push_back({static_cast<std::size_t>(peer), limit - table.offset()});
        }
        first_target_[static_cast<std::size_t>(residue) + 1] = targets_.size();
    }
    // Each class has one taker, who takes all rows and looks none up: the most frequent case, and the quickest.
    appends_ = any();
    for (int residue = 0; appends_ && residue < n; ++residue) {
        if (place_.slot_in(residue) >= table.shape().k) continue;
        const std::size_t first = first_target_[static_cast<std::size_t>(residue)];
        appends_ = first_target_[static_cast<std::size_t>(residue) + 1] - first == 1 &&
                   targets_[first].limit >= table.quotients() &&
                   !window_->buffer(static_cast<int>(targets_[first].peer)).looks_up();
    }
}

void Deltas::place(std::span<const RowPlace> rows) {
    streams_ = false;
    if (appends_) {
        append(rows);
    } else {
        look_up(rows);
    }
}

void Deltas::append(std::span<const RowPlace> rows) {
    const std::size_t bytes = table_->record_bytes();
    // By peer: two classes may have the same one, while others recover.
    std::array<RowBuffer::End, shards_max> ends;
    std::array<std::size_t, shards_max> added{};
    // Nobody reads a delta before it is sent. Whole lines written with non-temporal
    // stores need not be read first.
    const std::size_t alignment = table_->shape().optimizer->alignment;
    streams_ = rows.size() * bytes >= streamed_bytes_min_ && bytes % alignment == 0 &&
               table_->weight_bytes() % line == 0;
    for (const Target& target : targets_) {
        RowBuffer& buffer = window_->buffer(static_cast<int>(target.peer));
        buffer.make_room(rows.size(), bytes);
        ends[target.peer] = buffer.end();
        streams_ = streams_ && reinterpret_cast<std::uintptr_t>(ends[target.peer].record) % alignment == 0;
    }
    for (std::size_t m = 0; m < rows.size(); ++m) {
        const std::size_t peer = targets_[first_target_[rows[m].residue]].peer;
        RowBuffer::End& end = ends[peer];
        *end.key++ = key_of(rows[m]);
        deltas_[m] = end.record;
        merges_[m] = false;
        end.record += bytes;
        ++added[peer];
    }
    for (int peer = 0; peer < place_.shards; ++peer) {
        const std::size_t rows_added = added[static_cast<std::size_t>(peer)];
        if (rows_added != 0) window_->buffer(peer).extend(rows_added, bytes);
    }
}

// A delta for one peer is written where it is sent from; for several, or none, beside them.
void Deltas::look_up(std::span<const RowPlace> rows) {
    const std::size_t bytes = table_->record_bytes();
    beside_.shrink_to(0);
    beside_.extend(rows.size() * bytes);
    for (std::size_t m = 0; m < rows.size(); ++m) {
        deltas_[m] = beside_.data() + m * bytes;
        merges_[m] = false;
        const RowPlace& row = rows[m];
        for (std::size_t t = first_target_[row.residue]; t < first_target_[row.residue + 1]; ++t) {
            if (row.quotient >= targets_[t].limit) continue;
            Members& of_peer = members_[targets_[t].peer];
            of_peer.keys.push_back(key_of(row));
            of_peer.numbers.push_back(m);
        }
    }
    std::array<std::uint8_t*, run_max> found;
    std::array<bool, run_max> is_new;
    for (int peer = 0; peer < place_.shards; ++peer) {
        Members& of_peer = members_[static_cast<std::size_t>(peer)];
        if (of_peer.keys.empty()) continue;
        RowBuffer& buffer = window_->buffer(peer);
        buffer.make_room(rows.size(), bytes);
        buffer.unset_records(of_peer.keys, bytes, found.data(), is_new.data());
        for (std::size_t j = 0; j < of_peer.keys.size(); ++j) {
            const std::size_t m = of_peer.numbers[j];
            const std::uint32_t c = rows[m].residue;
            if (first_target_[c + 1] - first_target_[c] == 1) {
                deltas_[m] = found[j];
                merges_[m] = !is_new[j];
            } else {
                copies_.push_back({deltas_[m], found[j], !is_new[j]});
            }
        }
        of_peer.keys.clear();
        of_peer.numbers.clear();
    }
}

void Deltas::finish() {
    const std::size_t bytes = table_->record_bytes();
    for (const Copy& copy : copies_) {
        if (copy.merges) {
            xor_into(copy.target, copy.delta, bytes);
        } else {
            std::memcpy(copy.target, copy.delta, bytes);
        }
    }
    copies_.clear();
}

}  // namespace ecrec
