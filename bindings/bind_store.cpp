// What Python sees of a store, and of what is made of it.
//
// This file is long because all of these classes share the rules by which a call uses a store alone.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "gf/matrix.hpp"
#include "register.hpp"
#include "store/capture.hpp"
#include "base/in_use.hpp"
#include "kernels/optimizers.hpp"
#include "store/store.hpp"
#include "store/tuning.hpp"
#include "store_arrays.hpp"
#include "threads/pauses.hpp"

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

// An object for one call, and the store that it reads, whose listener is told of its work; refused while another thread
// is in a call with one of them.
class Using {
public:
    explicit Using(const Store& store) : store_(store.in_use(), "Store"), listening_(&store.listener()) {}
    explicit Using(const RowBuffer& buffer) : Using(buffer.store()) { own_.emplace(buffer.in_use(), "RowBuffer"); }
    explicit Using(const Window& window) : Using(*window.store()) { own_.emplace(window.in_use(), "Window"); }
    explicit Using(const Snapshot& snapshot) : Using(snapshot.store()) {}
    explicit Using(const Copying& copying) : Using(copying.store()) {}
    explicit Using(const Capture& capture) : Using(capture.store()) { own_.emplace(capture.in_use(), "Capture"); }
    Using(const Store& store, const Window* window) : Using(store) {
        if (window != nullptr) own_.emplace(window->in_use(), "Window");
    }

private:
    Use store_;
    std::optional<Use> own_;
    pauses::Listening listening_;
};

// A method as a function that uses its object alone, and does not hold the GIL meanwhile.
template <class Object, class Result, class... Arguments>
auto alone(Result (Object::*method)(Arguments...)) {
    return [method](Object& object, Arguments... arguments) -> Result {
        const Using use(object);
        return released([&]() -> Result { return (object.*method)(std::forward<Arguments>(arguments)...); });
    };
}
template <class Object, class Result, class... Arguments>
auto alone(Result (Object::*method)(Arguments...) const) {
    return [method](const Object& object, Arguments... arguments) -> Result {
        const Using use(object);
        return released([&]() -> Result { return (object.*method)(std::forward<Arguments>(arguments)...); });
    };
}
// The same for an attribute or a short call.
template <class Object, class Result, class... Arguments>
auto alone_held(Result (Object::*method)(Arguments...) const) {
    return [method](const Object& object, Arguments... arguments) -> Result {
        const Using use(object);
        return (object.*method)(std::forward<Arguments>(arguments)...);
    };
}

// Which rows changed between two marks, for Python to hold.
struct Noted {
    std::shared_ptr<const ChangeSet> set;
};

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
              double init_scale, double init_state, bool recovered, double weight_decay, bool decoupled,
              double max_gradient) {
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
                         recovered,
                         weight_decay,
                         decoupled,
                         max_gradient};
    const Using use(store);
    return released([&] { return store.add_table(options); });
}

py::dict memory(const Store& store) {
    const Using alone(store);
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
    const Using use(store);
    std::vector<std::tuple<int, int, std::string>> result;
    for (const StoreCode& code : store.codes()) {
        result.emplace_back(code.k(), code.r(), gf::generator_name(code.code.generator()));
    }
    return result;
}

template <class T, class Of>
py::array_t<T> of_each_key(const Store& store, const char* where, py::handle keys_object, Of&& of) {
    const auto keys = keys_view(keys_object);
    const Using use(store);
    store.check_keys(where, keys.span());
    py::array_t<T> result(static_cast<py::ssize_t>(keys.size));
    T* out = result.mutable_data();
    pauses::in_pieces(keys.size, pauses::piece_rows, pauses::row_bytes / 4, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = first; i < last; ++i) out[i] = static_cast<T>(of(keys.data[i]));
    });
    return result;
}

// name -> (names of its hyper-parameters, its parts of state: name, per weight, floats, doubles; divides by the rate;
// usual learning rates of tables and of the dense part)
py::dict optimizer_list() {
    py::dict result;
    for (const Optimizer& each : optimizers) {
        py::list hyper, state;
        for (std::size_t i = 0; i < each.hyper_count(); ++i) hyper.append(each.hyper[i].name);
        for (const StatePart& part : each.state) {
            if (part.name != nullptr) {
                state.append(py::make_tuple(part.name, part.per_weight, part.floats, part.doubles));
            }
        }
        result[each.name.text] = py::make_tuple(py::tuple(hyper), py::tuple(state), each.divides_by_rate,
                                                py::make_tuple(each.usual_rates.tables, each.usual_rates.dense));
    }
    return result;
}

void register_row_buffer(py::module_& module) {
    using namespace py::literals;
    py::class_<RowBuffer>(module, "RowBuffer")
        .def(py::init([](StorePointer store) { return RowBuffer(std::move(store)); }),
             py::arg("store").none(false))
        .def("__len__", alone_held(&RowBuffer::size))
        .def_property_readonly("nbytes", alone_held(&RowBuffer::record_bytes))
        .def(
            "fold",
            [](RowBuffer& buffer, int coefficient, py::handle keys_object, py::handle records_object) {
                if (coefficient < 0 || coefficient > 255) {
                    throw py::value_error("coefficient: expected 0..255, got " + std::to_string(coefficient));
                }
                const auto keys = keys_view(keys_object);
                const auto records = readable<U8>(records_object, "records");
                const Using use(buffer);
                released([&] { buffer.fold(static_cast<U8>(coefficient), keys.span(), records.span()); });
            },
            "coefficient"_a, "keys"_a, "records"_a)
        .def("nonzero",
             [](const RowBuffer& buffer) {
                 const Using use(buffer);
                 return to_array(released([&] { return buffer.nonzero(); }));
             })
        .def("remove_class", alone(&RowBuffer::remove_class), "class_id"_a)
        .def("take", [](RowBuffer& buffer) {
            const Using use(buffer);
            return to_arrays(buffer.take());
        })
        .def("take_nonzero", [](RowBuffer& buffer) {
            const Using use(buffer);
            return to_arrays(released([&] { return buffer.take_nonzero(); }));
        });
}

void register_window(py::module_& module) {
    using namespace py::literals;
    py::class_<Window>(module, "Window")
        .def(py::init([](const StorePointer& store) {
                 const Using use(*store);
                 return std::make_unique<Window>(store);
             }),
             py::arg("store").none(false))
        .def_property_readonly_static("UNLIMITED", [](const py::object&) { return unlimited; })
        .def("limit", alone_held(&Window::limit), "peer"_a, "class_id"_a)
        .def(
            "set_limit",
            [](Window& window, int peer, int class_id, U64 position) {
                const Using use(window);
                window.set_limit(peer, class_id, position);
            },
            "peer"_a, "class_id"_a, "position"_a)
        .def("buffer", &Window::buffer, "peer"_a, py::return_value_policy::reference_internal)
        .def("rows", alone_held(&Window::rows))
        .def("nbytes", alone_held(&Window::record_bytes));
}

void register_capture(py::module_& module) {
    using namespace py::literals;
    py::class_<Capture>(module, "Capture")
        .def(py::init([](StorePointer store, int class_id, U64 first, U64 last) {
                 const Using use(*store);
                 return released([&] { return std::make_unique<Capture>(store, class_id, first, last); });
             }),
             py::arg("store").none(false), "class_id"_a, "first"_a, "last"_a)
        .def_static(
            "of_keys",
            [](StorePointer store, int class_id, py::handle keys_object) {
                const auto keys = keys_view(keys_object);
                const Using use(*store);
                return released([&] { return std::make_unique<Capture>(store, class_id, keys.span()); });
            },
            py::arg("store").none(false), "class_id"_a, "keys"_a)
        .def(
            "fold",
            [](Capture& capture, int source, py::handle keys_object, py::handle records_object) {
                const auto keys = keys_view(keys_object);
                const auto records = readable<U8>(records_object, "records");
                const Using use(capture);
                released([&] { capture.fold(source, keys.span(), records.span()); });
            },
            "source"_a, "keys"_a, "records"_a)
        .def_property_readonly("nbytes", alone_held(&Capture::nbytes))
        .def("take", [](Capture& capture) {
            const Using use(capture);
            return to_arrays(capture.take());
        });
}

void register_snapshot(py::module_& module) {
    using namespace py::literals;
    py::class_<Snapshot>(module, "Snapshot")
        .def(py::init([](const StorePointer& store, std::vector<std::vector<std::size_t>> columns,
                         const std::optional<std::pair<U64, U64>>& changed) {
                 const Using use(*store);
                 std::optional<Snapshot::Marks> marks;
                 if (changed) marks = {changed->first, changed->second};
                 return released([&] { return std::make_unique<Snapshot>(store, std::move(columns), marks); });
             }),
             py::arg("store").none(false), "columns"_a, "changed"_a = std::nullopt)
        .def_property_readonly("rows", alone_held(&Snapshot::rows))
        .def_property_readonly("taken", alone_held(&Snapshot::taken))
        .def_property_readonly("kept_bytes", alone_held(&Snapshot::kept_bytes))
        .def(
            "take",
            [](Snapshot& snapshot, std::size_t bytes_max) {
                const Using use(snapshot);
                Snapshot::Chunk chunk = released([&] { return snapshot.take(bytes_max); });
                return std::make_tuple(chunk.table, chunk.rows, to_array(std::move(chunk.bytes)));
            },
            "bytes_max"_a)
        .def("close", alone(&Snapshot::close));
}

void register_copying(py::module_& module) {
    using namespace py::literals;
    py::class_<Copying>(module, "Copying")
        .def(py::init([](const StorePointer& store) {
                 const Using use(*store);
                 return std::make_unique<Copying>(store);
             }),
             py::arg("store").none(false))
        .def_property_readonly("rows", alone_held(&Copying::rows))
        .def_property_readonly("nbytes", alone_held(&Copying::bytes))
        .def(
            "take",
            [](Copying& copying, std::size_t bytes_max) {
                const Using use(copying);
                return to_arrays(released([&] { return copying.take(bytes_max); }));
            },
            "bytes_max"_a)
        .def("close", alone(&Copying::close));
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
                const Using use(store);
                released([&] { store.gather(views.sections(), records, out.span()); });
            },
            "tables"_a, "counts"_a, "rows"_a, "out"_a, "records"_a = false)
        .def(
            "gather_bytes",
            [](const Store& store, py::handle tables_object, py::handle counts_object, bool records) {
                const auto tables = readable<std::int32_t>(tables_object, "tables");
                const auto counts = readable<std::int64_t>(counts_object, "counts");
                const Using use(store);
                return store.gather_bytes(tables.span(), counts.span(), records);
            },
            "tables"_a, "counts"_a, "records"_a = false)
        .def(
            "missing",
            [](const Store& store, py::handle tables, py::handle counts, py::handle rows) {
                const SectionViews views(tables, counts, rows);
                const Using use(store);
                return to_array(released([&] { return store.missing(views.sections()); }));
            },
            "tables"_a, "counts"_a, "rows"_a)
        .def(
            "check",
            [](Store& store, py::handle tables, py::handle counts, py::handle rows,
               py::handle values_object) {
                const SectionViews views(tables, counts, rows);
                const auto values = readable<float>(values_object, "values");
                const Using use(store);
                released([&] { store.check(views.sections(), values.span()); });
            },
            "tables"_a, "counts"_a, "rows"_a, "values"_a)
        .def(
            "apply",
            [](Store& store, py::handle tables, py::handle counts, py::handle rows,
               py::handle gradients_object, Window* window, const std::vector<double>& rates) {
                const SectionViews views(tables, counts, rows);
                const auto gradients = readable<float>(gradients_object, "gradients");
                const Using use(store, window);
                released([&] { store.apply(views.sections(), gradients.span(), window, rates); });
            },
            "tables"_a, "counts"_a, "rows"_a, "gradients"_a, "window"_a.none(true), "rates"_a = std::vector<double>{})
        .def(
            "assign",
            [](Store& store, py::handle tables, py::handle counts, py::handle rows, py::handle values_object,
               Window* window) {
                const SectionViews views(tables, counts, rows);
                const auto values = readable<float>(values_object, "values");
                const Using use(store, window);
                released([&] { store.assign(views.sections(), values.span(), window); });
            },
            "tables"_a, "counts"_a, "rows"_a, "values"_a, "window"_a.none(true))
        .def(
            "assign_records",
            [](Store& store, py::handle tables, py::handle counts, py::handle rows, py::handle records_object,
               Window* window) {
                const SectionViews views(tables, counts, rows);
                const auto records = readable<float>(records_object, "records");
                const Using use(store, window);
                released([&] { store.assign_records(views.sections(), records.span(), window); });
            },
            "tables"_a, "counts"_a, "rows"_a, "records"_a, "window"_a.none(true))
        .def(
            "keys",
            [](const Store& store, py::handle tables, py::handle counts, py::handle rows) {
                const SectionViews views(tables, counts, rows);
                const Using use(store);
                return to_array(released([&] { return store.keys(views.sections()); }));
            },
            "tables"_a, "counts"_a, "rows"_a)
        .def(
            "distinct",
            [](const Store& store, py::handle keys_object, py::handle known_object) {
                const auto keys = keys_view(keys_object);
                const auto known = readable<U64>(known_object, "known");
                const Using use(store);
                return to_array(released([&] { return store.distinct(keys.span(), known.span()); }));
            },
            "keys"_a, "known"_a);
}

void def_parity_and_recovery(py::class_<Store, StorePointer>& store) {
    using namespace py::literals;
    store
        .def(
            "fold",
            [](Store& store, int source, U64 class_mask, py::handle keys_object, py::handle records_object) {
                const auto keys = keys_view(keys_object);
                const auto records = readable<U8>(records_object, "records");
                const Using use(store);
                released([&] { store.fold(source, class_mask, keys.span(), records.span()); });
            },
            "source"_a, "class_mask"_a, "keys"_a, "records"_a)
        .def("wipe_parity", alone(&Store::wipe_parity), "class_id"_a)
        .def("span", alone(&Store::span), "class_id"_a, "first"_a, "last"_a, "rows_max"_a, "bytes_max"_a = unlimited)
        .def(
            "coded_rows",
            [](const Store& store, int class_id, U64 first, U64 last) {
                const Using use(store);
                return to_arrays(released([&] { return store.coded_rows(class_id, first, last); }));
            },
            "class_id"_a, "first"_a, "last"_a)
        .def(
            "coded_rows_of",
            [](const Store& store, py::handle keys_object) {
                const auto keys = keys_view(keys_object);
                const Using use(store);
                return to_arrays(released([&] { return store.coded_rows_of(keys.span()); }));
            },
            "keys"_a)
        .def(
            "seed",
            [](Store& store, Window& window, int peer, int class_id, U64 rows_max, U64 bytes_max) {
                const Using use(store, &window);
                SeedProgress progress =
                    released([&] { return store.seed(window, peer, class_id, rows_max, bytes_max); });
                return std::make_tuple(progress.finished, to_array(std::move(progress.blocked)));
            },
            "window"_a, "peer"_a, "class_id"_a, "rows_max"_a, "bytes_max"_a = unlimited)
        .def(
            "restore",
            [](Store& store, py::handle keys_object, py::handle coded_object) {
                const auto keys = keys_view(keys_object);
                const auto coded = readable<U8>(coded_object, "coded");
                const Using use(store);
                released([&] { store.restore(keys.span(), coded.span()); });
            },
            "keys"_a, "coded"_a)
        .def(
            "put",
            [](Store& store, py::handle keys_object, py::handle records_object) {
                const auto keys = keys_view(keys_object);
                const auto records = readable<U8>(records_object, "records");
                const Using use(store);
                released([&] { store.put(keys.span(), records.span()); });
            },
            "keys"_a, "records"_a)
        .def("mark_recovered", alone(&Store::mark_recovered), "class_id"_a, "first"_a, "last"_a)
        .def(
            "mark_recovered_keys",
            [](Store& store, py::handle keys_object) {
                const auto keys = keys_view(keys_object);
                const Using use(store);
                released([&] { store.mark_recovered_keys(keys.span()); });
            },
            "keys"_a)
        .def("next_missing", alone(&Store::next_missing), "class_id"_a, "first"_a)
        .def(
            "missing_counts",
            [](const Store& store, int class_id) {
                const Using use(store);
                Store::MissingCounts found = store.missing_counts(class_id);
                return std::make_tuple(to_array(std::move(found.tables)), to_array(std::move(found.counts)));
            },
            "class_id"_a)
        .def(
            "missing_of",
            [](const Store& store, py::handle keys_object, U64 rows_max) {
                const auto keys = keys_view(keys_object);
                const Using use(store);
                return to_array(released([&] { return store.missing_of(keys.span(), rows_max); }));
            },
            "keys"_a, "rows_max"_a)
        .def(
            "missing_keys",
            [](const Store& store, int class_id, U64 first, U64 rows_max) {
                const Using use(store);
                return to_array(released([&] { return store.missing_keys(class_id, first, rows_max); }));
            },
            "class_id"_a, "first"_a, "rows_max"_a);
}

}  // namespace

void register_store(py::module_& module) {
    using namespace py::literals;
    py::register_exception_translator(&translate_store_error);
    module.def("optimizers", &optimizer_list);
    module.def("tuning", [] {
        py::dict knobs;
        for (const auto& [name, value] : read_tuning()) knobs[py::str(name)] = value;
        return knobs;
    });
    module.def("set_tuning", [](const py::kwargs& values) {
        std::vector<std::pair<std::string, std::int64_t>> knobs;
        for (const auto& [name, value] : values) {
            knobs.emplace_back(py::cast<std::string>(name), py::cast<std::int64_t>(value));
        }
        set_tuning(knobs);
    });

    py::class_<Store, StorePointer> store(module, "Store");
    const py::class_<Noted> changes(module, "Changes");
    register_row_buffer(module);
    register_window(module);
    register_capture(module);
    register_snapshot(module);
    register_copying(module);
    store.def(py::init<int, int, int, int>(), "shard"_a, "shards"_a, "group"_a = 0, "groups"_a = 1)
        .def("add_table", &add_table, "rows"_a, "dim"_a, "k"_a, "r"_a, "generator"_a, "optimizer"_a,
             "hyper"_a, "init"_a, "init_seed"_a, "init_scale"_a, "init_state"_a, "recovered"_a = true,
             "weight_decay"_a = 0.0, "decoupled"_a = false, "max_gradient"_a = 0.0)
        .def(
            "on_pause",
            [](Store& store, std::function<void(std::size_t)> pause) {
                const Using use(store);
                store.listener() = {std::move(pause)};
            },
            "pause"_a.none(true))
        .def_property_readonly("tables", alone_held(&Store::tables))
        .def(
            "record_bytes",
            [](const Store& store, int table) {
                const Using use(store);
                return store.table(table).record_bytes();
            },
            "table"_a)
        .def("class_size", alone_held(&Store::class_size), "class_id"_a)
        .def_property_readonly("codes", &codes)
        .def(
            "touched_rows",
            [](const Store& store) {
                const Using use(store);
                Growing<std::int64_t> rows;
                for (std::size_t i = 0; i < store.tables(); ++i) {
                    rows.push_back(static_cast<std::int64_t>(store.table(static_cast<int>(i)).data_rows_touched()));
                }
                return to_array(std::move(rows));
            })
        .def(
            "changes_between",
            [](const Store& store, U64 since, U64 until) {
                const Using use(store);
                return Noted{released([&] { return store.changes().between(since, until); })};
            },
            "since"_a, "until"_a)
        .def(
            "next_rows",
            [](const Store& store, const Noted* noted, std::size_t table, std::uint32_t slot, U64 quotient,
               std::size_t bytes_max) {
                const Using use(store);
                ChangedRows found = released([&] {
                    return next_rows(store, noted == nullptr ? nullptr : noted->set.get(), table, slot, quotient,
                                     bytes_max);
                });
                const bool is_last = found.next_table >= store.tables();
                const auto next = std::make_tuple(found.next_table, found.next_slot, found.next_quotient);
                return std::make_tuple(found.table, to_array(std::move(found.rows)), next, is_last);
            },
            "changes"_a.none(true), "table"_a, "slot"_a, "quotient"_a, "bytes_max"_a)
        .def(
            "mark_changes",
            [](Store& store) {
                const Using use(store);
                return store.changes().mark();
            })
        .def(
            "has_mark",
            [](const Store& store, U64 mark) {
                const Using use(store);
                return store.changes().has(mark);
            },
            "mark"_a)
        .def(
            "drop_mark",
            [](Store& store, U64 mark) {
                const Using use(store);
                released([&] { store.changes().drop(mark); });
            },
            "mark"_a)
        .def("use_huge_pages", alone(&Store::use_huge_pages), "extents"_a)
        .def("give_up",
             [](const py::object& object) {
                 const auto store = object.cast<StorePointer>();
                 const Using use(*store);
                 if (store.use_count() > 2) {  // the object's, and this one
                     refuse(ErrorKind::state, "give_up: windows, captures or copies of the store are there");
                 }
                 return released([&] { return store->give_up(); });
             })
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
