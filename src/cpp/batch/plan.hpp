// Which distinct rows a batch needs, and on which shards they are.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/bytes.hpp"

namespace ecrec::batch {

struct BatchIds {
    std::span<const std::int64_t> ids;
    std::span<const std::int64_t> starts;      // of each feature's ids, and the end
    std::span<const std::int32_t> tables;      // of each feature
    std::span<const std::int64_t> table_rows;  // of each table
    std::span<const std::int32_t> table_k;
    int shards = 1;  // of a group
    int groups = 1;
};

struct BatchPlan {
    Growing<std::int64_t> rows;        // by shard, then table, then first occurrence
    std::vector<std::int64_t> counts;  // (groups * shards) x tables
    Growing<std::int32_t> inverse;     // place of each id among rows
};

BatchPlan plan_batch(const BatchIds& batch);

struct PlacedRows {
    std::span<const std::int64_t> rows;    // by table
    std::span<const std::int64_t> tables;  // of which there are some rows
    std::span<const std::int64_t> counts;  // of the rows of each
    std::span<const std::int64_t> table_rows;
    std::span<const std::int64_t> table_k;
    int shards = 1;  // of a group
    int groups = 1;
};

// Index of the first row that its table has not, or that is not on the shard; the number of rows if there is none.
std::size_t first_elsewhere(const PlacedRows& placed, int shard);

struct UniqueIds {
    Growing<std::int64_t> ids;  // in order of first occurrence
    Growing<std::int64_t> inverse;
};

UniqueIds unique_inverse(std::span<const std::int64_t> ids);

}  // namespace ecrec::batch
