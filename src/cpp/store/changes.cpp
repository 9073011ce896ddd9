#include "store/changes.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "store/store.hpp"
#include "threads/pauses.hpp"

namespace ecrec {

void ChangeSet::add(std::size_t table_index, const Table& table, std::span<const RowPlace> rows) {
    if (table_index >= tables_.size()) tables_.resize(table_index + 1);
    std::vector<Bitmap>& slots = tables_[table_index];
    if (slots.empty()) slots.resize(static_cast<std::size_t>(table.shape().k));
    for (const RowPlace& row : rows) {
        Bitmap& changed = slots[row.slot];
        if (changed.bits() == 0) changed = Bitmap(table.data_extent(static_cast<int>(row.slot)));
        changed.set(row.quotient);
    }
}

std::uint64_t ChangeSet::rows(std::size_t table_index) const {
    if (table_index >= tables_.size()) return 0;
    std::uint64_t found = 0;
    for (const Bitmap& changed : tables_[table_index]) found += changed.count(0, changed.bits());
    return found;
}

void ChangeSet::unite(const ChangeSet& other) {
    if (tables_.size() < other.tables_.size()) tables_.resize(other.tables_.size());
    for (std::size_t i = 0; i < other.tables_.size(); ++i) {
        const std::vector<Bitmap>& from = other.tables_[i];
        std::vector<Bitmap>& into = tables_[i];
        if (into.size() < from.size()) into.resize(from.size());
        for (std::size_t slot = 0; slot < from.size(); ++slot) {
            if (from[slot].bits() == 0) continue;
            if (into[slot].bits() == 0) into[slot] = Bitmap(from[slot].bits());
            into[slot].unite(from[slot], [](std::size_t words) { pauses::work(16 * words); });
        }
    }
}

void Changes::note(std::size_t table_index, const Table& table, std::span<const RowPlace> rows) {
    if (stretches_.empty()) return;
    try {
        stretches_.back().set->add(table_index, table, rows);
    } catch (const StoreError&) {  // no address space
        stretches_.clear();
    }
    pauses::work(rows.size() * pauses::step_bytes);
}

std::uint64_t Changes::mark() {
    stretches_.push_back({newest_ + 1, std::make_shared<ChangeSet>()});
    return ++newest_;
}

bool Changes::has(std::uint64_t mark) const {
    return std::any_of(stretches_.begin(), stretches_.end(), [&](const Stretch& each) { return each.mark == mark; });
}

void Changes::drop(std::uint64_t mark) {
    const auto found =
        std::find_if(stretches_.begin(), stretches_.end(), [&](const Stretch& each) { return each.mark == mark; });
    if (found == stretches_.end()) return;
    if (found != stretches_.begin()) {
        std::shared_ptr<ChangeSet>& before = (found - 1)->set;
        // trap: a copy that is being taken still looks at it
        if (before.use_count() != 1) {
            auto own = std::make_shared<ChangeSet>();
            own->unite(*before);
            before = std::move(own);
        }
        before->unite(*found->set);
    }
    stretches_.erase(found);
}

std::shared_ptr<const ChangeSet> Changes::between(std::uint64_t since, std::uint64_t until) const {
    if (since >= until || !has(since) || !has(until)) {
        refuse(ErrorKind::value, "changes between marks ", since, " and ", until, " are not noted");
    }
    std::vector<const Stretch*> found;
    for (const Stretch& each : stretches_) {
        if (each.mark >= since && each.mark < until) found.push_back(&each);
    }
    if (found.size() == 1) return found.front()->set;
    auto all = std::make_shared<ChangeSet>();
    for (const Stretch* each : found) all->unite(*each->set);
    return all;
}

ChangedRows next_rows(const Store& store, const ChangeSet* set, std::size_t table_index, std::uint32_t slot,
                      std::uint64_t quotient, std::size_t bytes_max) {
    ChangedRows found;
    const ShardPlace& place = store.place();
    const std::size_t tables = set == nullptr ? store.tables() : std::min(store.tables(), set->tables());
    for (; table_index < tables; ++table_index, slot = 0) {
        const Table& table = store.table(static_cast<int>(table_index));
        found.table = table_index;
        const std::size_t rows_max = std::max<std::size_t>(bytes_max / (8 + table.weight_bytes()), 1);
        for (; slot < static_cast<std::uint32_t>(table.shape().k); ++slot, quotient = 0) {
            const Bitmap* rows = set == nullptr ? &table.touched(slot) : set->of(table_index, slot);
            if (rows == nullptr) continue;
            const int residue = (place.shard - static_cast<int>(slot) + place.shards) % place.shards;
            const bool ended = rows->scan(quotient, table.data_extent(static_cast<int>(slot)), [&](std::uint64_t at) {
                if (found.rows.size() == rows_max) {
                    quotient = at;
                    return false;
                }
                const std::uint64_t stripe = table.stripe_at(at, residue);
                found.rows.push_back(static_cast<std::int64_t>(table.row_at(stripe, static_cast<int>(slot))));
                return true;
            });
            if (!ended) {
                found.next_table = table_index, found.next_slot = slot, found.next_quotient = quotient;
                return found;
            }
        }
        quotient = 0;
        if (found.rows.size() != 0) {
            found.next_table = table_index + 1;
            return found;
        }
    }
    found.next_table = store.tables();
    return found;
}

}  // namespace ecrec
