#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "batch/plan.hpp"
#include "batch/pooling.hpp"
#include "batch/sizes.hpp"
#include "batch/sums.hpp"
#include "register.hpp"
#include "store/store.hpp"
#include "store_arrays.hpp"
#include "threads/pauses.hpp"

namespace ecrec::bindings {
namespace {

using I32 = std::int32_t;
using I64 = std::int64_t;

template <class T>
py::array_t<T> flat(std::vector<T>&& values) {
    const auto size = static_cast<py::ssize_t>(values.size());
    return move_to_array(std::move(values), {size});
}

std::tuple<py::array_t<I64>, py::array_t<I64>, py::array_t<I32>> plan_batch(
    py::handle ids_object, py::handle starts_object, py::handle tables_object, py::handle rows_object,
    py::handle k_object, int shards, int groups) {
    const auto ids = readable<I64>(ids_object, "ids");
    const auto starts = readable<I64>(starts_object, "starts");
    const auto tables = readable<I32>(tables_object, "tables");
    const auto table_rows = readable<I64>(rows_object, "table_rows");
    const auto table_k = readable<I32>(k_object, "table_k");
    batch::BatchPlan plan;
    {
        const py::gil_scoped_release release;
        plan = batch::plan_batch(
            {ids.span(), starts.span(), tables.span(), table_rows.span(), table_k.span(), shards, groups});
    }
    const auto table_count = static_cast<py::ssize_t>(table_rows.size);
    return {to_array(std::move(plan.rows)),
            move_to_array(std::move(plan.counts), {static_cast<py::ssize_t>(shards) * groups, table_count}),
            to_array(std::move(plan.inverse))};
}

struct BagViews {
    View<const I64> value_offsets;
    View<const I32> inverse;
    View<const I64> bag_offsets;
    View<const I32> dims;
    View<const bool> mean;
    std::optional<View<const float>> weights;
    I64 batch;

    BagViews(py::handle value_offsets, py::handle inverse, py::handle bag_offsets, py::handle dims, I64 batch,
             py::handle mean, py::handle weights_object)
        : value_offsets(readable<I64>(value_offsets, "value_offsets")),
          inverse(readable<I32>(inverse, "inverse")),
          bag_offsets(readable<I64>(bag_offsets, "bag_offsets")),
          dims(readable<I32>(dims, "dims")),
          mean(readable<bool>(mean, "mean")),
          batch(batch) {
        if (!weights_object.is_none()) weights.emplace(readable<float>(weights_object, "weights"));
    }

    batch::Bags bags() const {
        return {value_offsets.span(), inverse.span(), bag_offsets.span(), dims.span(), batch, mean.span(),
                weights ? weights->span() : std::span<const float>()};
    }
    void require_disjoint_from(const View<float>& out, const char* name) const {
        require_disjoint(value_offsets, "value_offsets", out, name);
        require_disjoint(inverse, "inverse", out, name);
        require_disjoint(bag_offsets, "bag_offsets", out, name);
        require_disjoint(dims, "dims", out, name);
        require_disjoint(mean, "mean", out, name);
        if (weights) require_disjoint(*weights, "weights", out, name);
    }
};

void pool_forward(py::handle values_object, py::handle value_offsets, py::handle inverse,
                  py::handle bag_offsets, py::handle dims, I64 batch, py::handle mean,
                  py::handle out_object, py::handle weights) {
    const auto values = readable<float>(values_object, "values");
    const BagViews views(value_offsets, inverse, bag_offsets, dims, batch, mean, weights);
    const auto out = writable<float>(out_object, "out");
    require_disjoint(values, "values", out, "out");
    views.require_disjoint_from(out, "out");
    const py::gil_scoped_release release;
    batch::pool_forward(values.span(), views.bags(), out.span());
}

void pool_backward(py::handle grad_out_object, py::handle value_offsets, py::handle inverse,
                   py::handle bag_offsets, py::handle dims, I64 batch, py::handle mean,
                   py::handle gradients_object, py::handle weights) {
    const auto grad_out = readable<float>(grad_out_object, "grad_out");
    const BagViews views(value_offsets, inverse, bag_offsets, dims, batch, mean, weights);
    const auto gradients = writable<float>(gradients_object, "gradients");
    require_disjoint(grad_out, "grad_out", gradients, "gradients");
    views.require_disjoint_from(gradients, "gradients");
    const py::gil_scoped_release release;
    batch::pool_backward(grad_out.span(), views.bags(), gradients.span());
}

void pool_backward_weights(py::handle grad_out_object, py::handle values_object, py::handle value_offsets,
                           py::handle inverse, py::handle bag_offsets, py::handle dims, I64 batch, py::handle mean,
                           py::handle gradients_object) {
    const auto grad_out = readable<float>(grad_out_object, "grad_out");
    const auto values = readable<float>(values_object, "values");
    const BagViews views(value_offsets, inverse, bag_offsets, dims, batch, mean, py::none());
    const auto gradients = writable<float>(gradients_object, "gradients");
    require_disjoint(grad_out, "grad_out", gradients, "gradients");
    require_disjoint(values, "values", gradients, "gradients");
    views.require_disjoint_from(gradients, "gradients");
    const py::gil_scoped_release release;
    batch::pool_backward_weights(grad_out.span(), values.span(), views.bags(), gradients.span());
}

std::tuple<py::array_t<I32>, py::array_t<I64>, py::array_t<I64>, py::array_t<float>> sum_sections(
    const py::sequence& sections, py::handle dims_object, const Store* store) {
    struct PushViews {
        View<const I32> tables;
        View<const I64> counts;
        View<const I64> rows;
        View<const float> gradients;
    };
    std::vector<PushViews> views;
    std::vector<batch::Push> pushes;
    for (const py::handle object : sections) {
        const std::string name = element_name("sections", views.size());
        if (!py::isinstance<py::sequence>(object) || py::len(object) != 4) {
            throw py::type_error(name + ": expected (tables, counts, rows, gradients)");
        }
        const auto section = py::reinterpret_borrow<py::sequence>(object);
        views.push_back(
            {readable<I32>(section[0], name + " tables"), readable<I64>(section[1], name + " counts"),
             readable<I64>(section[2], name + " rows"), readable<float>(section[3], name + " gradients")});
        const PushViews& push = views.back();
        pushes.push_back({push.tables.span(), push.counts.span(), push.rows.span(), push.gradients.span()});
    }
    const auto dims = readable<I32>(dims_object, "dims");
    batch::SummedPush sum;
    {
        const pauses::Listening listening(store == nullptr ? nullptr : &store->listener());
        const py::gil_scoped_release release;
        sum = batch::sum_sections(pushes, dims.span());
    }
    return {flat(std::move(sum.tables)), flat(std::move(sum.counts)), to_array(std::move(sum.rows)),
            to_array(std::move(sum.gradients))};
}

py::array_t<float> segment_sum(py::handle values_object, py::handle inverse_object, I64 segments) {
    const auto values = readable<float>(values_object, "values");
    const auto inverse = readable<I64>(inverse_object, "inverse");
    require_dimensions(values, 2, "values");
    require_size(inverse, values.extent(0), "inverse");
    if (segments < 0) throw py::value_error("segments: expected at least 0, got " + std::to_string(segments));
    const std::size_t floats = batch::product(static_cast<std::size_t>(segments), values.extent(1));
    if (batch::product(floats, sizeof(float)) > static_cast<std::size_t>(PY_SSIZE_T_MAX)) {
        throw py::value_error("segments: " + std::to_string(segments) + " of " + std::to_string(values.extent(1)) +
                              " floats do not fit into memory");
    }
    py::array_t<float> out({static_cast<py::ssize_t>(segments), static_cast<py::ssize_t>(values.extent(1))});
    const std::span<float> out_span(out.mutable_data(), static_cast<std::size_t>(out.size()));
    const std::size_t dim = values.extent(1);
    {
        const py::gil_scoped_release release;
        batch::segment_sum(values.span(), dim, inverse.span(), out_span);
    }
    return out;
}

std::tuple<py::array_t<I64>, py::array_t<I64>> unique_inverse(py::handle ids_object) {
    const auto ids = readable<I64>(ids_object, "ids");
    batch::UniqueIds unique;
    {
        const py::gil_scoped_release release;
        unique = batch::unique_inverse(ids.span());
    }
    return {to_array(std::move(unique.ids)), to_array(std::move(unique.inverse))};
}

I64 first_elsewhere(py::handle rows_object, py::handle tables_object, py::handle counts_object,
                    py::handle table_rows_object, py::handle table_k_object, int shard, int shards, int groups) {
    const auto rows = readable<I64>(rows_object, "rows");
    const auto tables = readable<I64>(tables_object, "tables");
    const auto counts = readable<I64>(counts_object, "counts");
    const auto table_rows = readable<I64>(table_rows_object, "table_rows");
    const auto table_k = readable<I64>(table_k_object, "table_k");
    const py::gil_scoped_release release;
    const std::size_t found = batch::first_elsewhere(
        {rows.span(), tables.span(), counts.span(), table_rows.span(), table_k.span(), shards, groups}, shard);
    return found == rows.size ? -1 : static_cast<I64>(found);
}

I64 first_nonfinite(py::handle values_object) {
    const auto values = readable<float>(values_object, "values");
    const py::gil_scoped_release release;
    return batch::first_nonfinite(values.span());
}

}  // namespace

void register_batch(py::module_& module) {
    using namespace py::literals;
    module.def("plan_batch", &plan_batch, "ids"_a, "starts"_a, "tables"_a, "table_rows"_a, "table_k"_a,
               "shards"_a, "groups"_a = 1);
    module.def("pool_forward", &pool_forward, "values"_a, "value_offsets"_a, "inverse"_a, "bag_offsets"_a,
               "dims"_a, "batch"_a, "mean"_a, "out"_a, "weights"_a = py::none());
    module.def("pool_backward", &pool_backward, "grad_out"_a, "value_offsets"_a, "inverse"_a, "bag_offsets"_a,
               "dims"_a, "batch"_a, "mean"_a, "gradients"_a, "weights"_a = py::none());
    module.def("pool_backward_weights", &pool_backward_weights, "grad_out"_a, "values"_a, "value_offsets"_a,
               "inverse"_a, "bag_offsets"_a, "dims"_a, "batch"_a, "mean"_a, "gradients"_a);
    module.def("sum_sections", &sum_sections, "sections"_a, "dims"_a, "store"_a = nullptr);
    module.def("segment_sum", &segment_sum, "values"_a, "inverse"_a, "segments"_a);
    module.def("unique_inverse", &unique_inverse, "ids"_a);
    module.def("first_elsewhere", &first_elsewhere, "rows"_a, "tables"_a, "counts"_a, "table_rows"_a, "table_k"_a,
               "shard"_a, "shards"_a, "groups"_a = 1);
    module.def("first_nonfinite", &first_nonfinite, "values"_a);
}

}  // namespace ecrec::bindings
