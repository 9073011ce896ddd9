#include "batch/plan.hpp"

#include <algorithm>
#include <limits>

#include "batch/id_index.hpp"
#include "store/divider.hpp"
#include "store/error.hpp"

namespace ecrec::batch {
namespace {

void check(const BatchIds& batch) {
    const std::size_t features = batch.tables.size();
    if (batch.shards < 1)
        refuse(ErrorKind::value, "plan_batch: shards is ", batch.shards, ", expected at least 1");
    if (batch.groups < 1)
        refuse(ErrorKind::value, "plan_batch: groups is ", batch.groups, ", expected at least 1");
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

}  // namespace

BatchPlan plan_batch(const BatchIds& batch) {
    check(batch);
    const std::size_t table_count = batch.table_rows.size();
    const std::size_t shard_count =
        static_cast<std::size_t>(batch.shards) * static_cast<std::size_t>(batch.groups);
    BatchPlan plan;
    plan.counts.resize(shard_count * table_count);
    plan.inverse.extend(batch.ids.size());

    std::vector<std::vector<std::size_t>> features_of(table_count);
    for (std::size_t f = 0; f < batch.tables.size(); ++f)
        features_of[static_cast<std::size_t>(batch.tables[f])].push_back(f);

    // Distinct rows in order of table, then first occurrence, with their shards; then moved to their places.
    Growing<std::int64_t> distinct;
    distinct.extend(batch.ids.size() + 1);
    std::size_t distinct_count = 0;
    std::vector<std::size_t> first_distinct(table_count + 1);
    IdIndex<std::uint32_t> narrow;
    IdIndex<std::int64_t> wide;
    for (std::size_t t = 0; t < table_count; ++t) {
        first_distinct[t] = distinct_count;
        std::size_t ids = 0;
        for (const std::size_t f : features_of[t])
            ids += static_cast<std::size_t>(batch.starts[f + 1] - batch.starts[f]);
        if (ids == 0) continue;
        const std::uint64_t rows = static_cast<std::uint64_t>(batch.table_rows[t]);
        const bool is_small = is_narrow(rows);
        if (is_small) {
            narrow.start(ids);
        } else {
            wide.start(ids);
        }
        for (const std::size_t f : features_of[t]) {
            const std::size_t first = static_cast<std::size_t>(batch.starts[f]);
            const auto of_feature = batch.ids.subspan(first, static_cast<std::size_t>(batch.starts[f + 1]) - first);
            const std::size_t bad = first_out_of_range(of_feature, rows);
            if (bad != of_feature.size()) {
                refuse(ErrorKind::index, "plan_batch: feature ", f, ", position ", bad, ": id ", of_feature[bad],
                       " is out of range, table ", t, " has ", batch.table_rows[t], " rows");
            }
            std::int64_t* to = distinct.data() + distinct_count;
            std::int32_t* numbers = plan.inverse.data() + first;
            const std::int32_t base = static_cast<std::int32_t>(distinct_count);
            if (is_small) {
                narrow.number(of_feature, to, numbers, base);
            } else {
                wide.number(of_feature, to, numbers, base);
            }
        }
        distinct_count += static_cast<std::size_t>(is_small ? narrow.size() : wide.size());
    }
    first_distinct[table_count] = distinct_count;

    // Of each distinct row its shard and how many rows of its table came before it there; then its place.
    Growing<std::uint32_t> shard_of;
    shard_of.extend(distinct_count);
    Growing<std::int32_t> place;
    place.extend(distinct_count);
    const Divider by_groups(static_cast<std::uint64_t>(batch.groups));
    const Divider by_shards(static_cast<std::uint64_t>(batch.shards));
    std::vector<std::int32_t> rows_of_shard(shard_count);
    for (std::size_t t = 0; t < table_count; ++t) {
        const Divider by_k(static_cast<std::uint64_t>(batch.table_k[t]));
        std::fill(rows_of_shard.begin(), rows_of_shard.end(), 0);
        const auto assign_shards = [&](auto divide) {
            const std::uint64_t k = by_k.divisor(), groups = by_groups.divisor(), shards = by_shards.divisor();
            for (std::size_t u = first_distinct[t], end = first_distinct[t + 1]; u < end; ++u) {
                const std::uint64_t row = static_cast<std::uint64_t>(distinct[u]);
                const std::uint64_t global = divide(by_k, row);
                const std::uint64_t stripe = divide(by_groups, global);
                const std::uint64_t group = global - stripe * groups;
                std::uint64_t shard = stripe - divide(by_shards, stripe) * shards + (row - global * k);
                if (shard >= shards) shard -= shards;
                shard += group * shards;
                shard_of[u] = static_cast<std::uint32_t>(shard);
                place[u] = rows_of_shard[shard]++;
            }
        };
        if (is_narrow(static_cast<std::uint64_t>(batch.table_rows[t]))) {
            assign_shards([](const Divider& by, std::uint64_t x) { return by.of_small(x); });
        } else {
            assign_shards([](const Divider& by, std::uint64_t x) { return by(x); });
        }
        for (std::size_t shard = 0; shard < shard_count; ++shard) {
            plan.counts[shard * table_count + t] = rows_of_shard[shard];
        }
    }

    std::vector<std::int32_t> starts(plan.counts.size());  // by table, then shard
    std::int32_t sum = 0;
    for (std::size_t shard = 0; shard < shard_count; ++shard) {
        for (std::size_t t = 0; t < table_count; ++t) {
            starts[t * shard_count + shard] = sum;
            sum += static_cast<std::int32_t>(plan.counts[shard * table_count + t]);
        }
    }
    std::int64_t* const rows = plan.rows.extend(distinct_count);
    for (std::size_t t = 0; t < table_count; ++t) {
        const std::int32_t* const starts_of_table = starts.data() + t * shard_count;
        for (std::size_t u = first_distinct[t], end = first_distinct[t + 1]; u < end; ++u) {
            const std::int32_t at = place[u] + starts_of_table[shard_of[u]];
            place[u] = at;
            rows[at] = distinct[u];
        }
    }
    for (std::int32_t& entry : plan.inverse) entry = place[static_cast<std::size_t>(entry)];
    return plan;
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
