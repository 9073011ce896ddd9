#include <pybind11/stl.h>

#include <memory>
#include <tuple>

#include "gf/matrix.hpp"
#include "register.hpp"
#include "store/capture.hpp"
#include "store/store.hpp"
#include "store_arrays.hpp"

namespace ecrec::bindings {
namespace {

using U8 = std::uint8_t;
using U64 = std::uint64_t;
using StorePointer = std::shared_ptr<Store>;
using KeysAndRecords = std::tuple<py::array_t<U64>, py::array_t<U8>>;

KeysAndRecords to_arrays(RowsBlob&& blob) {
    return {to_array(std::move(blob.keys)), to_array(std::move(blob.records))};
}

// Calls without the GIL. Results must not be Python objects.
template <class Work>
auto released(Work&& work) {
    const py::gil_scoped_release release;
    return work();
}

struct SectionViews {
    View<const std::int32_t> tables;
    View<const std::int64_t> counts;
    View<const std::int64_t> rows;

    SectionViews(py::handle tables, py::handle counts, py::handle rows)
        : tables(readable<std::int32_t>(tables, "tables")),
          counts(readable<std::int64_t>(counts, "counts")),
          rows(readable<std::int64_t>(rows, "rows")) {}

    Sections sections() const { return {tables.span(), counts.span(), rows.span()}; }
};

View<const U64> keys_view(py::handle keys) { return readable<U64>(keys, "keys"); }

int add_table(Store& store, std::int64_t rows, std::int64_t dim, int k, int r, std::string generator,
              std::string optimizer, std::vector<double> hyper, std::string init, U64 init_seed,
              double init_scale, double init_state, bool recovered) {
    TableOptions options{rows,
                         dim,
                         k,
                         r,
                         std::move(generator),
                         std::move(optimizer),
                         std::move(hyper),
                         std::move(init),
                         init_seed,
                         init_scale,
                         init_state,
                         recovered};
    return store.add_table(options);
}

py::dict memory(const Store& store) {
    const MemoryUse use = store.memory();
    py::dict result;
    result["data_rows_touched"] = use.data_rows_touched;
    result["parity_rows_touched"] = use.parity_rows_touched;
    result["data_bytes_reserved"] = use.data_bytes_reserved;
    result["parity_bytes_reserved"] = use.parity_bytes_reserved;
    result["data_bytes_touched"] = use.data_bytes_touched;
    result["parity_bytes_touched"] = use.parity_bytes_touched;
    return result;
}

std::vector<std::tuple<int, int, std::string>> codes(const Store& store) {
    std::vector<std::tuple<int, int, std::string>> result;
    for (const StoreCode& code : store.codes()) {
        result.emplace_back(code.k(), code.r(), gf::generator_name(code.code.generator()));
    }
    return result;
}

template <class T, class Of>
py::array_t<T> of_each_key(const Store& store, const char* where, py::handle keys_object, Of&& of) {
    const auto keys = keys_view(keys_object);
    store.check_keys(where, keys.span());
    py::array_t<T> result(static_cast<py::ssize_t>(keys.size));
    T* out = result.mutable_data();
    for (std::size_t i = 0; i < keys.size; ++i) out[i] = static_cast<T>(of(keys.data[i]));
    return result;
}

void register_row_buffer(py::module_& module) {
    using namespace py::literals;
    py::class_<RowBuffer>(module, "RowBuffer")
        .def(py::init([](StorePointer store) { return RowBuffer(std::move(store)); }),
             py::arg("store").none(false))
        .def("__len__", &RowBuffer::size)
        .def_property_readonly("nbytes", &RowBuffer::record_bytes)
        .def(
            "fold",
            [](RowBuffer& buffer, int coefficient, py::handle keys_object, py::handle records_object) {
                if (coefficient < 0 || coefficient > 255) {
                    throw py::value_error("coefficient: expected 0..255, got " + std::to_string(coefficient));
                }
                const auto keys = keys_view(keys_object);
                const auto records = readable<U8>(records_object, "records");
                released([&] { buffer.fold(static_cast<U8>(coefficient), keys.span(), records.span()); });
            },
            "coefficient"_a, "keys"_a, "records"_a)
        .def("nonzero",
             [](const RowBuffer& buffer) { return to_array(released([&] { return buffer.nonzero(); })); })
        .def("remove_class", &RowBuffer::remove_class, "class_id"_a, py::call_guard<py::gil_scoped_release>())
        .def("take", [](RowBuffer& buffer) { return to_arrays(buffer.take()); });
}

void register_window(py::module_& module) {
    using namespace py::literals;
    py::class_<Window>(module, "Window")
        .def(py::init([](StorePointer store) { return Window(std::move(store)); }),
             py::arg("store").none(false))
        .def_property_readonly_static("UNLIMITED", [](const py::object&) { return unlimited; })
        .def("limit", &Window::limit, "peer"_a, "class_id"_a)
        .def("set_limit", &Window::set_limit, "peer"_a, "class_id"_a, "position"_a)
        .def("buffer", &Window::buffer, "peer"_a, py::return_value_policy::reference_internal)
        .def("rows", &Window::rows)
        .def("nbytes", &Window::record_bytes);
}

void register_capture(py::module_& module) {
    using namespace py::literals;
    py::class_<Capture>(module, "Capture")
        .def(py::init([](StorePointer store, int class_id, U64 first, U64 last) {
                 return released(
                     [&] { return std::make_unique<Capture>(std::move(store), class_id, first, last); });
             }),
             py::arg("store").none(false), "class_id"_a, "first"_a, "last"_a)
        .def_static(
            "of_keys",
            [](StorePointer store, int class_id, py::handle keys_object) {
                const auto keys = keys_view(keys_object);
                return released(
                    [&] { return std::make_unique<Capture>(std::move(store), class_id, keys.span()); });
            },
            py::arg("store").none(false), "class_id"_a, "keys"_a)
        .def(
            "fold",
            [](Capture& capture, int source, py::handle keys_object, py::handle records_object) {
                const auto keys = keys_view(keys_object);
                const auto records = readable<U8>(records_object, "records");
                released([&] { capture.fold(source, keys.span(), records.span()); });
            },
            "source"_a, "keys"_a, "records"_a)
        .def("take", [](Capture& capture) { return to_arrays(capture.take()); });
}

void def_rows(py::class_<Store, StorePointer>& store) {
    using namespace py::literals;
    store
        .def(
            "gather",
            [](const Store& store, py::handle tables, py::handle counts, py::handle rows,
               py::handle out_object, bool records) {
                const SectionViews views(tables, counts, rows);
                const auto out = writable<U8>(out_object, "out");
                require_disjoint(views.tables, "tables", out, "out");
                require_disjoint(views.counts, "counts", out, "out");
                require_disjoint(views.rows, "rows", out, "out");
                released([&] { store.gather(views.sections(), records, out.span()); });
            },
            "tables"_a, "counts"_a, "rows"_a, "out"_a, "records"_a = false)
        .def(
            "gather_bytes",
            [](const Store& store, py::handle tables_object, py::handle counts_object, bool records) {
                const auto tables = readable<std::int32_t>(tables_object, "tables");
                const auto counts = readable<std::int64_t>(counts_object, "counts");
                return store.gather_bytes(tables.span(), counts.span(), records);
            },
            "tables"_a, "counts"_a, "records"_a = false)
        .def(
            "missing",
            [](const Store& store, py::handle tables, py::handle counts, py::handle rows) {
                const SectionViews views(tables, counts, rows);
                return to_array(released([&] { return store.missing(views.sections()); }));
            },
            "tables"_a, "counts"_a, "rows"_a)
        .def(
            "check",
            [](Store& store, py::handle tables, py::handle counts, py::handle rows,
               py::handle values_object) {
                const SectionViews views(tables, counts, rows);
                const auto values = readable<float>(values_object, "values");
                released([&] { store.check(views.sections(), values.span()); });
            },
            "tables"_a, "counts"_a, "rows"_a, "values"_a)
        .def(
            "apply",
            [](Store& store, py::handle tables, py::handle counts, py::handle rows,
               py::handle gradients_object, Window* window) {
                const SectionViews views(tables, counts, rows);
                const auto gradients = readable<float>(gradients_object, "gradients");
                released([&] { store.apply(views.sections(), gradients.span(), window); });
            },
            "tables"_a, "counts"_a, "rows"_a, "gradients"_a, "window"_a.none(true))
        .def(
            "assign",
            [](Store& store, py::handle tables, py::handle counts, py::handle rows, py::handle values_object,
               Window* window) {
                const SectionViews views(tables, counts, rows);
                const auto values = readable<float>(values_object, "values");
                released([&] { store.assign(views.sections(), values.span(), window); });
            },
            "tables"_a, "counts"_a, "rows"_a, "values"_a, "window"_a.none(true))
        .def(
            "keys",
            [](const Store& store, py::handle tables, py::handle counts, py::handle rows) {
                const SectionViews views(tables, counts, rows);
                return to_array(released([&] { return store.keys(views.sections()); }));
            },
            "tables"_a, "counts"_a, "rows"_a);
}

void def_parity_and_recovery(py::class_<Store, StorePointer>& store) {
    using namespace py::literals;
    store
        .def(
            "fold",
            [](Store& store, int source, U64 class_mask, py::handle keys_object, py::handle records_object) {
                const auto keys = keys_view(keys_object);
                const auto records = readable<U8>(records_object, "records");
                released([&] { store.fold(source, class_mask, keys.span(), records.span()); });
            },
            "source"_a, "class_mask"_a, "keys"_a, "records"_a)
        .def("wipe_parity", &Store::wipe_parity, "class_id"_a, py::call_guard<py::gil_scoped_release>())
        .def("span", &Store::span, "class_id"_a, "first"_a, "last"_a, "rows_max"_a,
             py::call_guard<py::gil_scoped_release>())
        .def(
            "coded_rows",
            [](const Store& store, int class_id, U64 first, U64 last) {
                return to_arrays(released([&] { return store.coded_rows(class_id, first, last); }));
            },
            "class_id"_a, "first"_a, "last"_a)
        .def(
            "coded_rows_of",
            [](const Store& store, py::handle keys_object) {
                const auto keys = keys_view(keys_object);
                return to_arrays(released([&] { return store.coded_rows_of(keys.span()); }));
            },
            "keys"_a)
        .def(
            "seed",
            [](Store& store, Window& window, int peer, int class_id, U64 rows_max) {
                SeedProgress progress =
                    released([&] { return store.seed(window, peer, class_id, rows_max); });
                return std::make_tuple(progress.finished, to_array(std::move(progress.blocked)));
            },
            "window"_a, "peer"_a, "class_id"_a, "rows_max"_a)
        .def(
            "restore",
            [](Store& store, py::handle keys_object, py::handle coded_object) {
                const auto keys = keys_view(keys_object);
                const auto coded = readable<U8>(coded_object, "coded");
                released([&] { store.restore(keys.span(), coded.span()); });
            },
            "keys"_a, "coded"_a)
        .def("mark_recovered", &Store::mark_recovered, "class_id"_a, "first"_a, "last"_a,
             py::call_guard<py::gil_scoped_release>())
        .def(
            "mark_recovered_keys",
            [](Store& store, py::handle keys) { store.mark_recovered_keys(keys_view(keys).span()); },
            "keys"_a)
        .def("next_missing", &Store::next_missing, "class_id"_a, "first"_a,
             py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void register_store(py::module_& module) {
    using namespace py::literals;
    py::register_exception_translator(&translate_store_error);

    py::class_<Store, StorePointer> store(module, "Store");
    register_row_buffer(module);
    register_window(module);
    register_capture(module);
    store.def(py::init<int, int, int, int>(), "shard"_a, "shards"_a, "group"_a = 0, "groups"_a = 1)
        .def("add_table", &add_table, "rows"_a, "dim"_a, "k"_a, "r"_a, "generator"_a, "optimizer"_a,
             "hyper"_a, "init"_a, "init_seed"_a, "init_scale"_a, "init_state"_a, "recovered"_a = true,
             py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("tables", &Store::tables)
        .def(
            "record_bytes", [](const Store& store, int table) { return store.table(table).record_bytes(); },
            "table"_a)
        .def("class_size", &Store::class_size, "class_id"_a)
        .def_property_readonly("codes", &codes)
        .def("use_huge_pages", &Store::use_huge_pages, "extents"_a, py::call_guard<py::gil_scoped_release>())
        .def("memory", &memory)
        .def(
            "positions",
            [](const Store& store, py::handle keys) {
                return of_each_key<U64>(store, "positions", keys,
                                        [&](U64 key) { return store.position_of(key); });
            },
            "keys"_a)
        .def(
            "classes",
            [](const Store& store, py::handle keys) {
                return of_each_key<U8>(store, "classes", keys, [&](U64 key) { return store.class_of(key); });
            },
            "keys"_a);
    def_rows(store);
    def_parity_and_recovery(store);
}

}  // namespace ecrec::bindings
