#include "batch/plan.hpp"

#include <algorithm>
#include <limits>

#include "batch/id_index.hpp"
#include "batch/sizes.hpp"
#include "base/divider.hpp"
#include "base/error.hpp"

namespace ecrec::batch {
namespace {

// 65,536 groups of 16 are the most that a client takes. The limits bound what is allocated, and keep a shard's number within
// 32 bits.
constexpr std::size_t shards_max = std::size_t{1} << 20;
constexpr std::size_t counts_max = std::size_t{1} << 28;

void check(const BatchIds& batch) {
    const std::size_t features = batch.tables.size();
    if (batch.shards < 1)
        refuse(ErrorKind::value, "plan_batch: shards is ", batch.shards, ", expected at least 1");
    if (batch.groups < 1)
        refuse(ErrorKind::value, "plan_batch: groups is ", batch.groups, ", expected at least 1");
    const std::size_t shards = product(static_cast<std::size_t>(batch.shards), static_cast<std::size_t>(batch.groups));
    if (shards > shards_max) {
        refuse(ErrorKind::value, "plan_batch: ", batch.groups, " groups of ", batch.shards,
               " shards are too many, expected at most ", shards_max, " shards in all");
    }
    if (product(shards, batch.table_rows.size()) > counts_max) {
        refuse(ErrorKind::value, "plan_batch: counts of ", shards, " shards and ", batch.table_rows.size(),
               " tables are too many, expected at most ", counts_max);
    }
    if (batch.table_rows.size() != batch.table_k.size()) {
        refuse(ErrorKind::value, "plan_batch: got table_rows of ", batch.table_rows.size(),
               " tables and table_k of ", batch.table_k.size());
    }
    for (std::size_t t = 0; t < batch.table_k.size(); ++t) {
        if (batch.table_k[t] < 1 || batch.table_k[t] > batch.shards) {
            refuse(ErrorKind::value, "plan_batch: table_k[", t, "] is ", batch.table_k[t], ", expected 1 to ",
                   batch.shards);
        }
        if (batch.table_rows[t] < 1) {
            refuse(ErrorKind::value, "plan_batch: table_rows[", t, "] is ", batch.table_rows[t], ", expected at least 1");
        }
    }
    if (batch.starts.size() != features + 1) {
        refuse(ErrorKind::value, "plan_batch: got ", batch.starts.size(), " starts for ", features,
               " features, expected ", features + 1);
    }
    if (batch.ids.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
        refuse(ErrorKind::value, "plan_batch: ", batch.ids.size(), " ids are more than 2^31 - 1");
    }
    if (batch.starts[0] != 0 || batch.starts[features] != static_cast<std::int64_t>(batch.ids.size())) {
        refuse(ErrorKind::value, "plan_batch: starts go from ", batch.starts[0], " to ",
               batch.starts[features], ", expected 0 to ", batch.ids.size());
    }
    for (std::size_t f = 0; f < features; ++f) {
        if (batch.starts[f + 1] < batch.starts[f]) {
            refuse(ErrorKind::value, "plan_batch: starts[", f + 1, "] is ", batch.starts[f + 1],
                   ", below the one before");
        }
        const std::int32_t table = batch.tables[f];
        if (table < 0 || static_cast<std::size_t>(table) >= batch.table_rows.size()) {
            refuse(ErrorKind::value, "plan_batch: feature ", f, " is in table ", table, ", there are ",
                   batch.table_rows.size());
        }
    }
}

// Index of the first id that is not below `rows`; ids.size() if there is none.
std::size_t first_out_of_range(std::span<const std::int64_t> ids, std::uint64_t rows) {
    // Signs, because compilers make vectors of these operations for every CPU, and not of a comparison.
    const std::int64_t last = static_cast<std::int64_t>(rows) - 1;
    std::int64_t negative_if_bad = 0;
    for (const std::int64_t id : ids) negative_if_bad |= id | (last - (id & std::numeric_limits<std::int64_t>::max()));
    if (negative_if_bad >= 0) return ids.size();
    std::size_t i = 0;
    while (i < ids.size() && static_cast<std::uint64_t>(ids[i]) < rows) ++i;
    return i;
}

// The distinct rows of a batch in order of table, then first occurrence.
struct DistinctRows {
    Growing<std::int64_t> rows;
    std::vector<std::size_t> ends;  // of each table

    std::size_t count() const { return ends.empty() ? 0 : ends.back(); }

    // call(table, first, end) for each table.
    template <class Call>
    void for_tables(Call call) const {
        std::size_t first = 0;
        for (std::size_t t = 0; t < ends.size(); first = ends[t++]) call(t, first, ends[t]);
    }
};

// numbers[i]: which of the distinct rows ids[i] is.
DistinctRows find_distinct(const BatchIds& batch, std::int32_t* numbers) {
    std::vector<std::vector<std::size_t>> features_of(batch.table_rows.size());
    for (std::size_t f = 0; f < batch.tables.size(); ++f)
        features_of[static_cast<std::size_t>(batch.tables[f])].push_back(f);
    const auto ids_of = [&](std::size_t f) {
        const std::size_t first = static_cast<std::size_t>(batch.starts[f]);
        return batch.ids.subspan(first, static_cast<std::size_t>(batch.starts[f + 1]) - first);
    };

    DistinctRows distinct;
    distinct.rows.extend(batch.ids.size() + 1);
    std::size_t count = 0;
    const auto number_table = [&](std::size_t t, std::size_t ids, auto& index) {
        index.start(ids);
        for (const std::size_t f : features_of[t]) {
            const auto of_feature = ids_of(f);
            const std::size_t bad = first_out_of_range(of_feature, static_cast<std::uint64_t>(batch.table_rows[t]));
            if (bad != of_feature.size()) {
                refuse(ErrorKind::index, "plan_batch: feature ", f, ", position ", bad, ": id ", of_feature[bad],
                       " is out of range, table ", t, " has ", batch.table_rows[t], " rows");
            }
            index.number(of_feature, distinct.rows.data() + count, numbers + batch.starts[f],
                         static_cast<std::int32_t>(count));
        }
        count += static_cast<std::size_t>(index.size());
    };
    IdIndex<std::uint32_t> narrow;
    IdIndex<std::int64_t> wide;
    for (std::size_t t = 0; t < features_of.size(); ++t) {
        std::size_t ids = 0;
        for (const std::size_t f : features_of[t]) ids += ids_of(f).size();
        if (ids != 0 && is_narrow(static_cast<std::uint64_t>(batch.table_rows[t]))) {
            number_table(t, ids, narrow);
        } else if (ids != 0) {
            number_table(t, ids, wide);
        }
        distinct.ends.push_back(count);
    }
    return distinct;
}

// The shard of each row, in all groups, and which of its table's rows it is there.
struct ShardPlaces {
    Growing<std::uint32_t> shards;
    Growing<std::int32_t> ranks;
};

// Fills `counts`, shards x tables.
ShardPlaces find_shards(const BatchIds& batch, const DistinctRows& distinct, std::vector<std::int64_t>& counts) {
    ShardPlaces places;
    std::uint32_t* const shard_of = places.shards.extend(distinct.count());
    std::int32_t* const ranks = places.ranks.extend(distinct.count());
    const std::size_t tables = batch.table_rows.size();
    const Divider by_groups(static_cast<std::uint64_t>(batch.groups));
    const Divider by_shards(static_cast<std::uint64_t>(batch.shards));
    const std::uint64_t groups = by_groups.divisor(), shards = by_shards.divisor();
    std::vector<std::int32_t> rows_of(shards * groups);
    distinct.for_tables([&](std::size_t t, std::size_t first, std::size_t end) {
        const Divider by_k(static_cast<std::uint64_t>(batch.table_k[t]));
        const std::uint64_t k = by_k.divisor();
        std::fill(rows_of.begin(), rows_of.end(), 0);
        const auto place_rows = [&](auto divide) {
            for (std::size_t u = first; u < end; ++u) {
                const std::uint64_t row = static_cast<std::uint64_t>(distinct.rows[u]);
                const std::uint64_t global = divide(by_k, row);
                const std::uint64_t stripe = divide(by_groups, global);
                const std::uint64_t group = global - stripe * groups;
                std::uint64_t shard = stripe - divide(by_shards, stripe) * shards + (row - global * k);
                if (shard >= shards) shard -= shards;
                shard += group * shards;
                shard_of[u] = static_cast<std::uint32_t>(shard);
                ranks[u] = rows_of[shard]++;
            }
        };
        if (is_narrow(static_cast<std::uint64_t>(batch.table_rows[t]))) {
            place_rows([](const Divider& by, std::uint64_t x) { return by.of_small(x); });
        } else {
            place_rows([](const Divider& by, std::uint64_t x) { return by(x); });
        }
        for (std::size_t shard = 0; shard < rows_of.size(); ++shard) counts[shard * tables + t] = rows_of[shard];
    });
    return places;
}

}  // namespace

BatchPlan plan_batch(const BatchIds& batch) {
    check(batch);
    const std::size_t tables = batch.table_rows.size();
    const std::size_t shards = static_cast<std::size_t>(batch.shards) * static_cast<std::size_t>(batch.groups);
    BatchPlan plan;
    plan.counts.resize(shards * tables);
    std::int32_t* const numbers = plan.inverse.extend(batch.ids.size());
    const DistinctRows distinct = find_distinct(batch, numbers);
    ShardPlaces places = find_shards(batch, distinct, plan.counts);

    std::vector<std::int32_t> starts(plan.counts.size());  // by table, then shard
    std::int32_t sum = 0;
    for (std::size_t shard = 0; shard < shards; ++shard) {
        for (std::size_t t = 0; t < tables; ++t) {
            starts[t * shards + shard] = sum;
            sum += static_cast<std::int32_t>(plan.counts[shard * tables + t]);
        }
    }
    std::int64_t* const rows = plan.rows.extend(distinct.count());
    distinct.for_tables([&](std::size_t t, std::size_t first, std::size_t end) {
        const std::int32_t* const starts_of_table = starts.data() + t * shards;
        for (std::size_t u = first; u < end; ++u) {
            const std::int32_t at = places.ranks[u] + starts_of_table[places.shards[u]];
            places.ranks[u] = at;  // from here on its place among all rows
            rows[at] = distinct.rows[u];
        }
    });
    for (std::size_t i = 0; i < batch.ids.size(); ++i) numbers[i] = places.ranks[static_cast<std::size_t>(numbers[i])];
    return plan;
}

std::size_t first_elsewhere(const PlacedRows& placed, int shard) {
    if (placed.shards < 1 || placed.groups < 1 || shard < 0) {
        refuse(ErrorKind::value, "first_elsewhere: shard ", shard, " of ", placed.groups, " groups of ", placed.shards);
    }
    if (placed.counts.size() != placed.tables.size() || placed.table_k.size() != placed.table_rows.size()) {
        refuse(ErrorKind::value, "first_elsewhere: expected as many counts as tables, and as many k as sizes of tables");
    }
    const Divider by_groups(static_cast<std::uint64_t>(placed.groups));
    const Divider by_shards(static_cast<std::uint64_t>(placed.shards));
    const std::uint64_t groups = by_groups.divisor(), shards = by_shards.divisor();
    const std::uint64_t group = static_cast<std::uint64_t>(shard) / shards;
    const std::uint64_t in_group = static_cast<std::uint64_t>(shard) % shards;
    std::size_t first = 0;
    for (std::size_t i = 0; i < placed.tables.size(); ++i) {
        const auto table = static_cast<std::size_t>(placed.tables[i]), count = static_cast<std::size_t>(placed.counts[i]);
        if (table >= placed.table_k.size() || count > placed.rows.size() - first || placed.table_k[table] < 1) {
            refuse(ErrorKind::value, "first_elsewhere: ", placed.counts[i], " rows of table ", placed.tables[i]);
        }
        const std::uint64_t rows = static_cast<std::uint64_t>(placed.table_rows[table]);
        const Divider by_k(static_cast<std::uint64_t>(placed.table_k[table]));
        if (shards * groups == 1) {
            const std::size_t at = first_out_of_range(placed.rows.subspan(first, count), rows);
            first += at;
            if (at != count) return first;
            continue;
        }
        const auto search = [&](auto divide) {
            const std::size_t end = first + count;
            for (; first < end; ++first) {
                const std::uint64_t row = static_cast<std::uint64_t>(placed.rows[first]);  // below 0 it is very large
                if (row >= rows) return false;
                const std::uint64_t global = divide(by_k, row), slot = row - global * by_k.divisor();
                const std::uint64_t stripe = divide(by_groups, global), turned = stripe + slot;
                if (global - stripe * groups != group || turned - divide(by_shards, turned) * shards != in_group)
                    return false;
            }
            return true;
        };
        // The sum of a stripe and a slot is no larger than their row.
        const bool found = is_narrow(rows) ? search([](const Divider& by, std::uint64_t x) { return by.of_small(x); })
                                           : search([](const Divider& by, std::uint64_t x) { return by(x); });
        if (!found) return first;
    }
    if (first != placed.rows.size()) {
        refuse(ErrorKind::value, "first_elsewhere: counts add up to ", first, ", there are ", placed.rows.size(), " rows");
    }
    return first;
}

UniqueIds unique_inverse(std::span<const std::int64_t> ids) {
    if (ids.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
        refuse(ErrorKind::value, "unique_inverse: ", ids.size(), " ids are more than 2^31 - 1");
    }
    UniqueIds result;
    result.inverse.extend(ids.size());
    result.ids.extend(ids.size() + 1);
    std::uint64_t bits = 0;
    for (const std::int64_t id : ids) bits |= static_cast<std::uint64_t>(id);
    const auto number_all = [&](auto index) {
        index.start(ids.size());
        index.number(ids, result.ids.data(), result.inverse.data(), std::int64_t{0});
        result.ids.shrink_to(static_cast<std::size_t>(index.size()));
    };
    if (is_narrow(bits)) {
        number_all(IdIndex<std::uint32_t>());
    } else {
        number_all(IdIndex<std::int64_t>());
    }
    return result;
}

}  // namespace ecrec::batch
