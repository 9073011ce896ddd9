#include "batch/pooling.hpp"

#include <algorithm>
#include <vector>

#include "batch/row_sums.hpp"
#include "batch/sizes.hpp"
#include "base/bytes.hpp"
#include "base/error.hpp"
#include "threads/pool.hpp"

namespace ecrec::batch {
namespace {

// Rows lie one behind the other: of a row that overlaps another, two sums would be written to the same floats.
void check_offsets(const char* where, std::size_t value_count, std::span<const std::int64_t> offsets) {
    if (offsets.empty()) return;
    if (offsets.front() < 0) {
        refuse(ErrorKind::value, where, ": value_offsets[0] is ", offsets.front(), ", expected at least 0");
    }
    // All first, without a branch; which one it was is looked for where there is one.
    int bad = 0;
    for (std::size_t i = 1; i < offsets.size(); ++i) bad |= static_cast<int>(offsets[i] < offsets[i - 1]);
    for (std::size_t i = 1; bad != 0 && i < offsets.size(); ++i) {
        if (offsets[i] < offsets[i - 1]) {
            refuse(ErrorKind::value, where, ": value_offsets[", i, "] is ", offsets[i], ", below the one before, ",
                   offsets[i - 1]);
        }
    }
    if (static_cast<std::size_t>(offsets.back()) > value_count) {
        refuse(ErrorKind::value, where, ": value_offsets[", offsets.size() - 1, "] is ", offsets.back(), ", there are ",
               value_count, " floats");
    }
}

// Every id of a feature names a row, and that has as many floats before the next one begins.
void check_rows(const char* where, std::size_t value_count, const Bags& bags, std::size_t feature) {
    const std::size_t batch = static_cast<std::size_t>(bags.batch);
    const std::size_t first = static_cast<std::size_t>(bags.bag_offsets[feature * batch]);
    const std::size_t last = static_cast<std::size_t>(bags.bag_offsets[(feature + 1) * batch]);
    const std::size_t rows = bags.value_offsets.size();
    const std::int64_t dim = bags.dims[feature];
    const std::int64_t* const offsets = bags.value_offsets.data();
    const std::int64_t end = static_cast<std::int64_t>(value_count);
    const auto row_of = [&](std::size_t i) { return static_cast<std::uint32_t>(bags.inverse[i]); };
    const auto end_of = [&](std::size_t row) { return row + 1 < rows ? offsets[row + 1] : end; };
    int bad = 0;
    for (std::size_t i = first; rows != 0 && i < last; ++i) {
        const bool exists = row_of(i) < rows;
        const std::size_t row = exists ? row_of(i) : 0;
        bad |= static_cast<int>(!exists) | static_cast<int>(end_of(row) - offsets[row] < dim);
    }
    if (rows != 0 && bad == 0) return;
    for (std::size_t i = first; i < last; ++i) {
        const std::uint32_t row = row_of(i);
        if (row >= rows) {
            refuse(ErrorKind::index, where, ": inverse[", i, "] is ", bags.inverse[i], ", there are ", rows, " rows");
        }
        if (end_of(row) - offsets[row] >= dim) continue;
        if (offsets[row] > end - dim) {
            refuse(ErrorKind::value, where, ": row ", row, " of feature ", feature, " is at offset ", offsets[row],
                   " of ", value_count, " floats and has ", dim);
        }
        refuse(ErrorKind::value, where, ": row ", row, " of feature ", feature, " is at offset ", offsets[row],
               " and has ", dim, " floats, but row ", row + 1, " begins at ", offsets[row + 1]);
    }
}

// Everything that an index could reach is checked here; the loops below trust it. Returns sum(dims).
std::size_t check(const char* where, std::size_t value_count, const Bags& bags, std::size_t pooled_count) {
    const std::size_t features = bags.dims.size();
    if (bags.batch < 0) refuse(ErrorKind::value, where, ": batch is ", bags.batch, ", expected at least 0");
    const std::size_t batch = static_cast<std::size_t>(bags.batch);
    if (bags.mean.size() != features) {
        refuse(ErrorKind::value, where, ": got mean of ", bags.mean.size(), " features, expected ", features);
    }
    if (bags.bag_offsets.size() != sum(product(features, batch), 1)) {
        refuse(ErrorKind::value, where, ": got ", bags.bag_offsets.size(), " bag_offsets, expected ",
               features, " * ", batch, " + 1");
    }
    if (!bags.weights.empty() && bags.weights.size() != bags.inverse.size()) {
        refuse(ErrorKind::value, where, ": got ", bags.weights.size(), " weights, there are ", bags.inverse.size(), " ids");
    }
    std::size_t width = 0;
    for (std::size_t f = 0; f < features; ++f) {
        if (bags.dims[f] < 1)
            refuse(ErrorKind::value, where, ": dims[", f, "] is ", bags.dims[f], ", expected at least 1");
        width = sum(width, static_cast<std::size_t>(bags.dims[f]));
    }
    if (pooled_count != product(batch, width)) {
        refuse(ErrorKind::value, where, ": got ", pooled_count, " pooled floats, expected ", batch, " * ",
               width);
    }
    if (bags.bag_offsets.front() < 0 ||
        bags.bag_offsets.back() > static_cast<std::int64_t>(bags.inverse.size())) {
        refuse(ErrorKind::value, where, ": bag_offsets go from ", bags.bag_offsets.front(), " to ",
               bags.bag_offsets.back(), ", there are ", bags.inverse.size(), " ids");
    }
    for (std::size_t i = 1; i < bags.bag_offsets.size(); ++i) {
        if (bags.bag_offsets[i] < bags.bag_offsets[i - 1]) {
            refuse(ErrorKind::value, where, ": bag_offsets[", i, "] is ", bags.bag_offsets[i],
                   ", below the one before");
        }
    }
    check_offsets(where, value_count, bags.value_offsets);
    for (std::size_t f = 0; f < features; ++f) check_rows(where, value_count, bags, f);
    return width;
}

// A row is of one table and has one dim.
void check_dims(const Bags& bags) {
    const std::size_t batch = static_cast<std::size_t>(bags.batch);
    std::vector<std::int32_t> row_dim(bags.value_offsets.size());
    for (std::size_t f = 0; f < bags.dims.size(); ++f) {
        for (std::int64_t i = bags.bag_offsets[f * batch]; i < bags.bag_offsets[(f + 1) * batch]; ++i) {
            const std::int32_t row = bags.inverse[static_cast<std::size_t>(i)];
            std::int32_t& dim = row_dim[static_cast<std::size_t>(row)];
            if (dim != 0 && dim != bags.dims[f]) {
                refuse(ErrorKind::value, "pool_backward: row ", row, " has ", dim,
                       " floats in one feature and ", bags.dims[f], " in feature ", f);
            }
            dim = bags.dims[f];
        }
    }
}

void divide(float* target, const float* source, std::size_t count, float divisor) {
    for (std::size_t i = 0; i < count; ++i) target[i] = source[i] / divisor;
}

void multiply(float* target, const float* source, std::size_t count, float factor) {
    for (std::size_t i = 0; i < count; ++i) target[i] = source[i] * factor;
}

void multiply_add(float* target, const float* source, std::size_t count, float factor) {
    for (std::size_t i = 0; i < count; ++i) target[i] += source[i] * factor;
}

// Where each feature's part of a sample's pooled vector begins.
std::vector<std::size_t> columns_of(const Bags& bags) {
    std::vector<std::size_t> columns;
    std::size_t column = 0;
    for (const std::int32_t dim : bags.dims) {
        columns.push_back(column);
        column += static_cast<std::size_t>(dim);
    }
    return columns;
}

// Of a feature, before those of the next, where all have one dim: pooled vectors are met nearly in their order in memory,
// and so is what is known of each id, which lies feature by feature.
constexpr std::size_t samples_at_once = 8;

bool has_one_dim(const Bags& bags) {
    return std::all_of(bags.dims.begin(), bags.dims.end(), [&](std::int32_t dim) { return dim == bags.dims[0]; });
}

}  // namespace

void pool_forward(std::span<const float> values, const Bags& bags, std::span<float> pooled) {
    const std::size_t width = check("pool_forward", values.size(), bags, pooled.size());
    const std::size_t batch = static_cast<std::size_t>(bags.batch);
    if (pooled.empty()) return;
    const std::vector<std::size_t> columns = columns_of(bags);
    // Where bags have several ids, that a feature's rows stay in the caches is worth more.
    const std::size_t ids = static_cast<std::size_t>(bags.bag_offsets.back() - bags.bag_offsets.front());
    const bool by_samples = has_one_dim(bags) && ids <= batch * bags.dims.size();
    const Operations& operations = ecrec::operations();
    threads::for_ranges(batch, threads::grain_bytes / product(4, width), 1, [&](std::size_t begin, std::size_t end) {
        std::vector<const float*> sources;
        std::vector<std::size_t> ends;
        std::vector<float*> targets;
        const auto add_bag = [&](std::size_t f, std::size_t b) {
            const std::int64_t* bag = bags.bag_offsets.data() + f * batch + b;
            for (std::int64_t i = bag[0]; i < bag[1]; ++i) {
                const std::size_t row = static_cast<std::size_t>(bags.inverse[static_cast<std::size_t>(i)]);
                sources.push_back(values.data() + bags.value_offsets[row]);
            }
            ends.push_back(sources.size());
            targets.push_back(pooled.data() + b * width + columns[f]);
        };
        const auto pool = [&](std::size_t dim) {
            operations.pool_rows(ends.size(), dim, sources.data(), ends.data(), targets.data());
            sources.clear();
            ends.clear();
            targets.clear();
        };
        const auto add_weighted = [&](std::size_t f, std::size_t b) {
            const std::int64_t* bag = bags.bag_offsets.data() + f * batch + b;
            float* const out = pooled.data() + b * width + columns[f];
            const std::size_t dim = static_cast<std::size_t>(bags.dims[f]);
            if (bag[0] == bag[1]) std::fill(out, out + dim, 0.0f);
            for (std::int64_t i = bag[0]; i < bag[1]; ++i) {
                const std::size_t id = static_cast<std::size_t>(i);
                const float* const row = values.data() + bags.value_offsets[static_cast<std::size_t>(bags.inverse[id])];
                (i == bag[0] ? multiply : multiply_add)(out, row, dim, bags.weights[id]);
            }
        };
        if (!bags.weights.empty()) {
            for (std::size_t f = 0; f < bags.dims.size(); ++f) {
                for (std::size_t b = begin; b < end; ++b) add_weighted(f, b);
            }
        } else if (by_samples) {
            for (std::size_t first = begin; first < end; first += samples_at_once) {
                const std::size_t last = std::min(first + samples_at_once, end);
                for (std::size_t f = 0; f < bags.dims.size(); ++f) {
                    for (std::size_t b = first; b < last; ++b) add_bag(f, b);
                }
                pool(static_cast<std::size_t>(bags.dims[0]));
            }
        } else {
            for (std::size_t f = 0; f < bags.dims.size(); ++f) {
                for (std::size_t b = begin; b < end; ++b) add_bag(f, b);
                pool(static_cast<std::size_t>(bags.dims[f]));
            }
        }
        for (std::size_t f = 0; f < bags.dims.size(); ++f) {
            const std::int64_t* bag = bags.bag_offsets.data() + f * batch;
            for (std::size_t b = begin; bags.mean[f] && b < end; ++b) {
                float* out = pooled.data() + b * width + columns[f];
                const std::size_t dim = static_cast<std::size_t>(bags.dims[f]);
                if (bag[b + 1] - bag[b] > 1) divide(out, out, dim, static_cast<float>(bag[b + 1] - bag[b]));
            }
        }
    });
}

void pool_backward(std::span<const float> pooled_gradients, const Bags& bags, std::span<float> gradients) {
    const std::size_t width = check("pool_backward", gradients.size(), bags, pooled_gradients.size());
    const std::size_t batch = static_cast<std::size_t>(bags.batch);
    if (pooled_gradients.empty()) {
        // Without features, `batch` may be any number.
        std::fill(gradients.begin(), gradients.end(), 0.0f);
        return;
    }

    // Where each id's gradient goes, and whether it is the first there, which is written, or added. Found feature by
    // feature, in which order rows and offsets are met one after the other; what is summed sample by sample has no rows
    // that features share, and the first of each feature is the same.
    const std::size_t ids = bags.inverse.size();
    Growing<float*> targets;
    Growing<std::uint8_t> adds;
    targets.extend(ids);
    adds.extend(ids);
    std::vector<std::int32_t> row_feature(bags.value_offsets.size(), -1);
    std::size_t written = 0;
    bool shared = false;  // rows, between features
    for (std::size_t f = 0; f < bags.dims.size(); ++f) {
        std::int32_t* const feature_of = row_feature.data();
        const std::int32_t* const inverse = bags.inverse.data();
        const std::int64_t* const offsets = bags.value_offsets.data();
        const std::int32_t own = static_cast<std::int32_t>(f);
        const std::size_t first = static_cast<std::size_t>(bags.bag_offsets[f * batch]);
        const std::size_t last = static_cast<std::size_t>(bags.bag_offsets[(f + 1) * batch]);
        std::size_t new_rows = 0;
        bool of_others = false;
        for (std::size_t i = first; i < last; ++i) {
            const std::size_t row = static_cast<std::size_t>(inverse[i]);
            const std::int32_t before = feature_of[row];
            feature_of[row] = own;
            targets[i] = gradients.data() + offsets[row];
            adds[i] = before >= 0;
            new_rows += before < 0;
            of_others |= before >= 0 && before != own;
        }
        shared |= of_others;
        written += new_rows * static_cast<std::size_t>(bags.dims[f]);
    }
    if (shared && !has_one_dim(bags)) check_dims(bags);
    // A row's first occurrence writes, later ones add; zeros are only needed where no id writes.
    if (written != gradients.size()) std::fill(gradients.begin(), gradients.end(), 0.0f);

    const std::vector<std::size_t> columns = columns_of(bags);
    const std::size_t widest =
        bags.dims.empty() ? 0 : static_cast<std::size_t>(*std::max_element(bags.dims.begin(), bags.dims.end()));
    const auto sum_features = [&](std::size_t first_feature, std::size_t last_feature) {
        // What rows of a mean, or with weights, get is kept until it is summed, after RowSums::run rows at the latest.
        std::vector<float> shares;
        std::size_t next_share = 0;
        const auto next = [&] {
            shares.resize(product(RowSums::run, widest));
            float* const share = shares.data() + next_share * widest;
            next_share = (next_share + 1) % RowSums::run;
            return share;
        };
        const auto share_of = [&](const float* source, std::int32_t dim, std::int64_t ids) {
            float* const share = next();
            divide(share, source, static_cast<std::size_t>(dim), static_cast<float>(ids));
            return share;
        };
        const auto weighted_share_of = [&](const float* source, std::int32_t dim, float factor) {
            float* const share = next();
            multiply(share, source, static_cast<std::size_t>(dim), factor);
            return share;
        };
        const auto add_bags = [&](RowSums& sums, std::size_t f, std::size_t first, std::size_t last) {
            // By value: the compiler cannot know that what a sum is told does not change them.
            const std::int64_t* const bag = bags.bag_offsets.data() + f * batch;
            const float* source = pooled_gradients.data() + first * width + columns[f];
            float* const* const target = targets.data();
            const std::uint8_t* const is_added = adds.data();
            const bool mean = bags.mean[f];
            const std::size_t stride = width;
            const float* const weight = bags.weights.empty() ? nullptr : bags.weights.data();
            for (std::size_t b = first; b < last; ++b, source += stride) {
                const std::int64_t begin = bag[b], end = bag[b + 1];
                if (weight != nullptr) {
                    const float divisor = mean ? static_cast<float>(end - begin) : 1.0f;
                    for (std::int64_t i = begin; i < end; ++i) {
                        sums.add(weighted_share_of(source, bags.dims[f], weight[i] / divisor), target[i], is_added[i] != 0);
                    }
                    continue;
                }
                const bool is_divided = mean && end - begin > 1;
                const float* const each = is_divided ? share_of(source, bags.dims[f], end - begin) : source;
                for (std::int64_t i = begin; i < end; ++i) sums.add(each, target[i], is_added[i] != 0);
            }
        };
        if (has_one_dim(bags) && !shared) {
            RowSums sums(widest);
            // A wide row is read ahead as one run; several of them, a sample apart, were 9 % slower with 128 floats, and
            // 7 % faster with 64.
            const std::size_t at_once = bags.dims[0] <= 64 ? samples_at_once : 1;
            for (std::size_t first = 0; first < batch; first += at_once) {
                const std::size_t last = std::min(first + at_once, batch);
                for (std::size_t f = first_feature; f < last_feature; ++f) add_bags(sums, f, first, last);
            }
            sums.flush();
            return;
        }
        for (std::size_t f = first_feature; f < last_feature; ++f) {
            RowSums sums(static_cast<std::size_t>(bags.dims[f]));
            add_bags(sums, f, 0, batch);
            sums.flush();
        }
    };
    // Threads divide the features, whose order matters where they share rows.
    const std::size_t features = bags.dims.size();
    const std::size_t grain = shared ? features : product(threads::grain_bytes, features) / (pooled_gradients.size_bytes() + 1);
    threads::for_ranges(features, grain, 1, sum_features);
}

void pool_backward_weights(std::span<const float> pooled_gradients, std::span<const float> values, const Bags& bags,
                           std::span<float> gradients) {
    const std::size_t width = check("pool_backward_weights", values.size(), bags, pooled_gradients.size());
    if (gradients.size() != bags.inverse.size()) {
        refuse(ErrorKind::value, "pool_backward_weights: got ", gradients.size(), " gradients, there are ",
               bags.inverse.size(), " ids");
    }
    std::fill(gradients.begin(), gradients.end(), 0.0f);
    if (pooled_gradients.empty()) return;
    const std::size_t batch = static_cast<std::size_t>(bags.batch);
    const std::vector<std::size_t> columns = columns_of(bags);
    const std::size_t grain = threads::grain_bytes / std::max<std::size_t>(product(4, width), 1);
    threads::for_ranges(batch, grain, 1, [&](std::size_t begin, std::size_t end) {
        for (std::size_t f = 0; f < bags.dims.size(); ++f) {
            const std::int64_t* const bag = bags.bag_offsets.data() + f * batch;
            const std::size_t dim = static_cast<std::size_t>(bags.dims[f]);
            for (std::size_t b = begin; b < end; ++b) {
                const float* const source = pooled_gradients.data() + b * width + columns[f];
                const float divisor = bags.mean[f] ? static_cast<float>(bag[b + 1] - bag[b]) : 1.0f;
                for (std::int64_t i = bag[b]; i < bag[b + 1]; ++i) {
                    const std::size_t id = static_cast<std::size_t>(i);
                    const float* const row =
                        values.data() + bags.value_offsets[static_cast<std::size_t>(bags.inverse[id])];
                    float sum = 0.0f;
                    for (std::size_t column = 0; column < dim; ++column) sum += source[column] * row[column];
                    gradients[id] = sum / divisor;
                }
            }
        }
    });
}

}  // namespace ecrec::batch
