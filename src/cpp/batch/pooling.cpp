#include "batch/pooling.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/registry.hpp"
#include "store/error.hpp"

namespace ecrec::batch {
namespace {

constexpr std::size_t prefetch_ids = 8;

// Everything that an index could reach is checked here; the loops below trust it. Returns sum(dims).
std::size_t check(const char* where, std::size_t value_count, const Bags& bags, std::size_t pooled_count) {
    const std::size_t features = bags.dims.size();
    if (bags.batch < 0) refuse(ErrorKind::value, where, ": batch is ", bags.batch, ", expected at least 0");
    const std::size_t batch = static_cast<std::size_t>(bags.batch);
    if (bags.mean.size() != features) {
        refuse(ErrorKind::value, where, ": got mean of ", bags.mean.size(), " features, expected ", features);
    }
    if (bags.bag_offsets.size() != features * batch + 1) {
        refuse(ErrorKind::value, where, ": got ", bags.bag_offsets.size(), " bag_offsets, expected ",
               features, " * ", batch, " + 1");
    }
    std::size_t width = 0;
    for (std::size_t f = 0; f < features; ++f) {
        if (bags.dims[f] < 1)
            refuse(ErrorKind::value, where, ": dims[", f, "] is ", bags.dims[f], ", expected at least 1");
        width += static_cast<std::size_t>(bags.dims[f]);
    }
    if (pooled_count != batch * width) {
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
    for (std::size_t f = 0; f < features; ++f) {
        const std::int64_t last_offset = static_cast<std::int64_t>(value_count) - bags.dims[f];
        for (std::int64_t i = bags.bag_offsets[f * batch]; i < bags.bag_offsets[(f + 1) * batch]; ++i) {
            const std::uint32_t row = static_cast<std::uint32_t>(bags.inverse[static_cast<std::size_t>(i)]);
            if (row >= bags.value_offsets.size()) {
                refuse(ErrorKind::index, where, ": inverse[", i, "] is ",
                       bags.inverse[static_cast<std::size_t>(i)], ", there are ", bags.value_offsets.size(),
                       " rows");
            }
            if (bags.value_offsets[row] < 0 || bags.value_offsets[row] > last_offset) {
                refuse(ErrorKind::index, where, ": row ", row, " of feature ", f, " is at offset ",
                       bags.value_offsets[row], " of ", value_count, " floats and has ", bags.dims[f]);
            }
        }
    }
    return width;
}

void divide(float* target, const float* source, std::size_t count, float divisor) {
    for (std::size_t i = 0; i < count; ++i) target[i] = source[i] / divisor;
}

void prefetch(const float* row, std::size_t dim) {
    for (std::size_t i = 0; i < std::min<std::size_t>(dim, 256); i += 16) __builtin_prefetch(row + i);
}

}  // namespace

void pool_forward(std::span<const float> values, const Bags& bags, std::span<float> pooled) {
    const std::size_t width = check("pool_forward", values.size(), bags, pooled.size());
    const Operations& operations = ecrec::operations();
    const std::size_t batch = static_cast<std::size_t>(bags.batch);
    const std::size_t ids = bags.inverse.size();
    const auto row = [&](std::size_t i) {
        return values.data() + bags.value_offsets[static_cast<std::size_t>(bags.inverse[i])];
    };
    std::size_t column = 0;
    for (std::size_t f = 0; f < bags.dims.size(); ++f) {
        const std::size_t dim = static_cast<std::size_t>(bags.dims[f]);
        const std::int64_t* bag = bags.bag_offsets.data() + f * batch;
        const std::size_t feature_end = static_cast<std::size_t>(bag[batch]);
        for (std::size_t b = 0; b < batch; ++b) {
            const std::size_t first = static_cast<std::size_t>(bag[b]),
                              last = static_cast<std::size_t>(bag[b + 1]);
            float* out = pooled.data() + b * width + column;
            if (first == last) {
                std::fill_n(out, dim, 0.0f);
                continue;
            }
            if (first + prefetch_ids < std::min(feature_end, ids)) prefetch(row(first + prefetch_ids), dim);
            std::memcpy(out, row(first), 4 * dim);
            if (last - first == 1) continue;
            for (std::size_t i = first + 1; i < last; ++i) {
                if (i + prefetch_ids < feature_end) prefetch(row(i + prefetch_ids), dim);
                operations.add(dim, row(i), out);
            }
            if (bags.mean[f]) divide(out, out, dim, static_cast<float>(last - first));
        }
        column += dim;
    }
}

void pool_backward(std::span<const float> pooled_gradients, const Bags& bags, std::span<float> gradients) {
    const std::size_t width = check("pool_backward", gradients.size(), bags, pooled_gradients.size());
    const Operations& operations = ecrec::operations();
    const std::size_t batch = static_cast<std::size_t>(bags.batch);

    // A row's first occurrence writes, later ones add; zeros are only needed where no id writes.
    std::vector<std::int32_t> row_dim(bags.value_offsets.size());
    std::size_t written = 0;
    std::int32_t widest = 0;
    for (std::size_t f = 0; f < bags.dims.size(); ++f) {
        widest = std::max(widest, bags.dims[f]);
        for (std::int64_t i = bags.bag_offsets[f * batch]; i < bags.bag_offsets[(f + 1) * batch]; ++i) {
            const std::int32_t row = bags.inverse[static_cast<std::size_t>(i)];
            std::int32_t& dim = row_dim[static_cast<std::size_t>(row)];
            if (dim != 0 && dim != bags.dims[f]) {
                refuse(ErrorKind::value, "pool_backward: row ", row, " has ", dim,
                       " floats in one feature and ", bags.dims[f], " in feature ", f);
            }
            if (dim == 0) written += static_cast<std::size_t>(bags.dims[f]);
            dim = bags.dims[f];
        }
    }
    if (written != gradients.size()) std::fill(gradients.begin(), gradients.end(), 0.0f);
    std::vector<std::uint8_t> seen(bags.value_offsets.size());

    std::vector<float> share(static_cast<std::size_t>(widest));
    std::size_t column = 0;
    for (std::size_t f = 0; f < bags.dims.size(); ++f) {
        const std::size_t dim = static_cast<std::size_t>(bags.dims[f]);
        const std::int64_t* bag = bags.bag_offsets.data() + f * batch;
        for (std::size_t b = 0; b < batch; ++b) {
            const std::size_t first = static_cast<std::size_t>(bag[b]),
                              last = static_cast<std::size_t>(bag[b + 1]);
            const float* source = pooled_gradients.data() + b * width + column;
            if (bags.mean[f] && last - first > 1) {
                divide(share.data(), source, dim, static_cast<float>(last - first));
                source = share.data();
            }
            for (std::size_t i = first; i < last; ++i) {
                const std::size_t u = static_cast<std::size_t>(bags.inverse[i]);
                float* target = gradients.data() + bags.value_offsets[u];
                if (seen[u] != 0) {
                    operations.add(dim, source, target);
                } else {
                    std::memcpy(target, source, 4 * dim);
                    seen[u] = 1;
                }
            }
        }
        column += dim;
    }
}

}  // namespace ecrec::batch
