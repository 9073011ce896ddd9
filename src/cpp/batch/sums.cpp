#include "batch/sums.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "batch/id_index.hpp"
#include "batch/row_sums.hpp"
#include "batch/sizes.hpp"
#include "kernels/registry.hpp"
#include "base/error.hpp"
#include "threads/pauses.hpp"

namespace ecrec::batch {
namespace {

// Some rows of one table in one push.
struct Part {
    const std::int64_t* rows;
    const float* gradients;
    std::size_t count;
};

void check_push(std::size_t p, const Push& push, std::span<const std::int32_t> dims) {
    if (push.tables.size() != push.counts.size()) {
        refuse(ErrorKind::value, "sum_sections: sections[", p, "] has ", push.tables.size(), " tables and ",
               push.counts.size(), " counts, expected as many");
    }
    std::size_t left = push.rows.size(), floats = 0;
    for (std::size_t s = 0; s < push.tables.size(); ++s) {
        const std::int32_t table = push.tables[s];
        if (table < 0 || static_cast<std::size_t>(table) >= dims.size()) {
            refuse(ErrorKind::value, "sum_sections: sections[", p, "] names table ", table, ", there are ",
                   dims.size());
        }
        const std::int64_t count = push.counts[s];
        if (count < 0 || static_cast<std::size_t>(count) > left) {
            refuse(ErrorKind::value, "sum_sections: sections[", p, "] counts ", count, " rows in section ", s,
                   ", but ", left, " of ", push.rows.size(), " are left");
        }
        left -= static_cast<std::size_t>(count);
        const std::size_t dim = static_cast<std::size_t>(dims[static_cast<std::size_t>(table)]);
        floats = sum(floats, product(static_cast<std::size_t>(count), dim));
    }
    if (left != 0) {
        refuse(ErrorKind::value, "sum_sections: the counts of sections[", p, "] add up to ",
               push.rows.size() - left, " rows, got ", push.rows.size());
    }
    if (push.gradients.size() != floats) {
        refuse(ErrorKind::value, "sum_sections: sections[", p, "] has ", push.gradients.size(),
               " floats of gradients, expected ", floats);
    }
}

}  // namespace

SummedPush sum_sections(std::span<const Push> pushes, std::span<const std::int32_t> dims) {
    for (std::size_t t = 0; t < dims.size(); ++t) {
        if (dims[t] < 1)
            refuse(ErrorKind::value, "sum_sections: dims[", t, "] is ", dims[t], ", expected at least 1");
    }
    for (std::size_t p = 0; p < pushes.size(); ++p) check_push(p, pushes[p], dims);

    std::vector<std::vector<Part>> parts(dims.size());
    for (const Push& push : pushes) {
        const std::int64_t* rows = push.rows.data();
        const float* gradients = push.gradients.data();
        for (std::size_t s = 0; s < push.tables.size(); ++s) {
            const std::size_t table = static_cast<std::size_t>(push.tables[s]);
            const std::size_t count = static_cast<std::size_t>(push.counts[s]);
            if (count != 0) parts[table].push_back({rows, gradients, count});
            rows += count;
            gradients += count * static_cast<std::size_t>(dims[table]);
        }
    }

    SummedPush summed;
    IdIndex<std::int64_t> index;
    for (std::size_t t = 0; t < dims.size(); ++t) {
        if (parts[t].empty()) continue;
        std::size_t ids = 0;
        for (const Part& part : parts[t]) ids += part.count;
        if (ids > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
            refuse(ErrorKind::value, "sum_sections: ", ids, " rows of table ", t, " are more than 2^31 - 1");
        }
        const std::size_t dim = static_cast<std::size_t>(dims[t]);
        const std::size_t first_row = summed.rows.size(), base = summed.gradients.size();
        std::int64_t* const rows = summed.rows.extend(ids);
        float* const gradients = summed.gradients.extend(ids * dim);
        RowSums sums(dim);
        index.start(ids);
        for (const Part& part : parts[t]) {
            const std::size_t cost = pauses::step_bytes + 12 * dim;
            const std::size_t piece = std::max<std::size_t>(pauses::piece_bytes / cost, 1);
            pauses::in_pieces(part.count, piece, cost, [&](std::size_t first, std::size_t last) {
                for (std::size_t i = first; i < last; ++i) {
                    const std::int32_t before = index.size();
                    const std::int32_t number = index.number(part.rows[i]);
                    rows[number] = part.rows[i];
                    sums.add(part.gradients + i * dim, gradients + static_cast<std::size_t>(number) * dim,
                             number != before);
                }
                sums.flush();
            });
        }
        summed.rows.shrink_to(first_row + static_cast<std::size_t>(index.size()));
        summed.gradients.shrink_to(base + static_cast<std::size_t>(index.size()) * dim);
        summed.tables.push_back(static_cast<std::int32_t>(t));
        summed.counts.push_back(index.size());
    }
    return summed;
}

void segment_sum(std::span<const float> values, std::size_t dim, std::span<const std::int64_t> inverse,
                 std::span<float> out) {
    const std::size_t segments = dim == 0 ? 0 : out.size() / dim;
    for (std::size_t i = 0; dim != 0 && i < inverse.size(); ++i) {
        if (static_cast<std::uint64_t>(inverse[i]) >= segments) {
            refuse(ErrorKind::index, "segment_sum: inverse[", i, "] is ", inverse[i], ", there are ",
                   segments, " segments");
        }
    }
    std::fill(out.begin(), out.end(), 0.0f);
    RowSums sums(dim);
    for (std::size_t i = 0; i < inverse.size(); ++i) {
        sums.add(values.data() + i * dim, out.data() + static_cast<std::size_t>(inverse[i]) * dim, true);
    }
    sums.flush();
}

std::int64_t first_nonfinite(std::span<const float> values) {
    if (operations().is_finite(values.size(), values.data())) return -1;
    const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
    return bad - values.begin();
}

}  // namespace ecrec::batch
