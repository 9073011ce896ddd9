#include <pybind11/stl.h>

#include <cstring>

#include "buffer_view.hpp"
#include "codec/code.hpp"
#include "codec/crc32c.hpp"
#include "codec/fold_rows.hpp"
#include "gf/coefficient.hpp"
#include "gf/field.hpp"
#include "gf/matrix.hpp"
#include "kernels/prefetch.hpp"
#include "kernels/registry.hpp"
#include "register.hpp"
#include "threads/pool.hpp"

namespace ecrec::bindings {
namespace {

using U8 = std::uint8_t;

std::string joined(const std::vector<const char*>& names) {
    std::string text;
    for (const char* name : names) text += (text.empty() ? "" : ", ") + std::string(name);
    return text;
}

void bind_use_kernel(const std::string& name) {
    switch (use_kernel(name)) {
        case KernelChoice::chosen: return;
        case KernelChoice::unknown:
            throw py::value_error("kernel '" + name + "' is unknown; this build has " +
                                  joined(compiled_kernels()));
        case KernelChoice::unsupported:
            throw py::value_error("kernel '" + name + "' cannot run on this machine, which can run " +
                                  joined(runnable_kernels()));
    }
}

const char* prefetch() { return prefetch_into == PrefetchInto::second_level ? "L2" : "L1"; }

void use_prefetch(const std::string& cache) {
    if (cache == "L1") {
        prefetch_into = PrefetchInto::first_level;
    } else if (cache == "L2") {
        prefetch_into = PrefetchInto::second_level;
    } else {
        throw py::value_error("cache '" + cache + "' is unknown, expected L1 or L2");
    }
}

py::array_t<U8> to_array(const gf::Matrix& matrix) {
    py::array_t<U8> array({matrix.rows, matrix.columns});
    if (!matrix.values.empty()) std::memcpy(array.mutable_data(), matrix.values.data(), matrix.values.size());
    return array;
}

// For native callers, which take a function by its address.
py::dict kernel_functions() {
    const Operations& kernel = operations();
    py::dict addresses;
    addresses["encode"] = reinterpret_cast<std::uintptr_t>(kernel.encode);
    addresses["fold"] = reinterpret_cast<std::uintptr_t>(kernel.fold);
    addresses["fold_rows"] = reinterpret_cast<std::uintptr_t>(kernel.fold_rows);
    return addresses;
}

py::array_t<U8> prepare_coefficients(py::handle object) {
    const auto values = readable<U8>(object, "values");
    py::array_t<U8> prepared(
        {static_cast<py::ssize_t>(values.size), static_cast<py::ssize_t>(sizeof(Coefficient))});
    for (std::size_t i = 0; i < values.size; ++i) {
        std::memcpy(prepared.mutable_data(static_cast<py::ssize_t>(i), 0), &gf::coefficient(values.data[i]),
                    sizeof(Coefficient));
    }
    return prepared;
}

int bind_use_threads(int count) {
    if (count < 1 || count > threads::threads_max) {
        const py::gil_scoped_acquire acquire;
        throw py::value_error("count: expected 1 to " + std::to_string(threads::threads_max) + " threads, got " +
                              std::to_string(count));
    }
    return threads::use(count);
}

U8 to_byte(int value, const char* name) {
    if (value < 0 || value > 255) {
        throw py::value_error(std::string(name) + ": expected 0..255, got " + std::to_string(value));
    }
    return static_cast<U8>(value);
}

U8 gf_multiply(int a, int b) { return gf::multiply(to_byte(a, "a"), to_byte(b, "b")); }

U8 gf_inverse(int a) {
    if (to_byte(a, "a") == 0) throw py::value_error("a: 0 has no inverse");
    return gf::inverse(static_cast<U8>(a));
}

py::array_t<U8> gf_invert_matrix(py::handle object) {
    const auto values = readable<U8>(object, "matrix");
    require_dimensions(values, 2, "matrix");
    if (values.extent(0) != values.extent(1) || values.extent(0) > 256) {
        throw py::value_error("matrix: expected a square matrix of at most 256 rows, got " +
                              std::to_string(values.extent(0)) + " x " + std::to_string(values.extent(1)));
    }
    const int size = static_cast<int>(values.extent(0));
    gf::Matrix matrix(size, size);
    matrix.values.assign(values.data, values.data + values.size);
    const auto inverse = gf::inverse(std::move(matrix));
    if (!inverse) throw py::value_error("matrix: singular");
    return to_array(*inverse);
}

Code make_code(int k, int r, const std::string& generator_name) {
    const auto generator = gf::generator_from_name(generator_name);
    if (!generator) {
        throw py::value_error("generator: expected 'cauchy' or 'isal-cauchy', got '" + generator_name + "'");
    }
    if (k < 1) throw py::value_error("k: expected at least 1, got " + std::to_string(k));
    if (r < 0) throw py::value_error("r: expected at least 0, got " + std::to_string(r));
    if (k > Code::slots_max || r > Code::slots_max - k) {
        throw py::value_error("k + r: expected at most 255, got " + std::to_string(k) + " + " +
                              std::to_string(r));
    }
    return Code(k, r, *generator);
}

void require_count(std::size_t got, std::size_t expected, const char* name) {
    if (got != expected) {
        throw py::value_error(std::string(name) + ": expected " + std::to_string(expected) + " arrays, got " +
                              std::to_string(got));
    }
}

void require_index(int index, int end, const char* name) {
    if (index < 0 || index >= end) {
        throw py::index_error(std::string(name) + ": expected 0 <= index < " + std::to_string(end) +
                              ", got " + std::to_string(index));
    }
}

// No target may share memory with a source or with another target.
void require_targets_disjoint(const Views<const U8>& sources, const char* source_name,
                              const Views<U8>& targets, const char* target_name) {
    for (std::size_t i = 0; i < targets.views.size(); ++i) {
        const std::string name = element_name(target_name, i);
        for (std::size_t j = 0; j < sources.views.size(); ++j) {
            require_disjoint(targets.views[i], name, sources.views[j], element_name(source_name, j));
        }
        for (std::size_t j = 0; j < i; ++j) {
            require_disjoint(targets.views[i], name, targets.views[j], element_name(target_name, j));
        }
    }
}

void encode(const Code& code, const py::sequence& data_arrays, const py::sequence& parity_arrays) {
    const auto data = views<const U8>(data_arrays, "data");
    const auto parity = views<U8>(parity_arrays, "parity");
    require_count(data.views.size(), static_cast<std::size_t>(code.k()), "data");
    require_count(parity.views.size(), static_cast<std::size_t>(code.r()), "parity");
    if (code.r() == 0) return;
    require_size(parity.views[0], data.size, "parity[0]");
    require_targets_disjoint(data, "data", parity, "parity");
    const py::gil_scoped_release release;
    code.encode(data.size, data.pointers.data(), parity.pointers.data());
}

void fold(const Code& code, int parity_index, int data_index, py::handle x_array, py::handle parity_array) {
    require_index(parity_index, code.r(), "parity_index");
    require_index(data_index, code.k(), "data_index");
    const auto x = readable<U8>(x_array, "x");
    const auto parity = writable<U8>(parity_array, "parity");
    require_size(parity, x.size, "parity");
    require_disjoint(x, "x", parity, "parity");
    const py::gil_scoped_release release;
    const Coefficient& c = code.coefficient(parity_index, data_index);
    threads::for_ranges(x.size, threads::grain_bytes, 4096, [&](std::size_t first, std::size_t last) {
        operations().fold(last - first, c, x.data + first, parity.data + first);
    });
}

void fold_rows(const Code& code, int parity_index, int data_index, py::handle x_array,
               py::handle indices_array, py::handle parity_array) {
    require_index(parity_index, code.r(), "parity_index");
    require_index(data_index, code.k(), "data_index");
    const auto x = readable<U8>(x_array, "x");
    const auto indices = readable<std::int64_t>(indices_array, "indices");
    const auto parity = writable<U8>(parity_array, "parity");
    require_dimensions(x, 2, "x");
    require_dimensions(parity, 2, "parity");
    require_size(indices, x.extent(0), "indices");
    if (x.extent(1) != parity.extent(1)) {
        throw py::value_error("parity: expected rows of " + std::to_string(x.extent(1)) + " bytes, got " +
                              std::to_string(parity.extent(1)));
    }
    require_disjoint(x, "x", parity, "parity");
    require_disjoint(indices, "indices", parity, "parity");
    const std::size_t bytes = x.extent(1);
    const auto rows = static_cast<std::int64_t>(parity.extent(0));
    std::vector<U8*> targets(indices.size);
    std::vector<const U8*> sources(indices.size);
    for (std::size_t m = 0; m < indices.size; ++m) {
        const std::int64_t index = indices.data[m];
        if (index < 0 || index >= rows) {
            throw py::index_error(element_name("indices", m) + ": expected 0 <= index < " +
                                  std::to_string(rows) + ", got " + std::to_string(index));
        }
        targets[m] = parity.data + static_cast<std::size_t>(index) * bytes;
        sources[m] = x.data + m * bytes;
    }
    const Coefficient& c = code.coefficient(parity_index, data_index);
    const py::gil_scoped_release release;
    ecrec::fold_rows(bytes, c, sources, targets);
}

void require_ok(CodeError error, const Code& code) {
    switch (error) {
        case CodeError::none: return;
        case CodeError::too_few_present:
            throw py::value_error("present: expected at least " + std::to_string(code.k()) + " slots");
        case CodeError::slot_out_of_range:
            throw py::index_error("present, lost: expected slots 0 <= slot < " +
                                  std::to_string(code.k() + code.r()));
        case CodeError::slot_repeated:
            throw py::value_error("present, lost: a slot is named twice");
    }
}

py::array_t<U8> decode_matrix(const Code& code, const std::vector<int>& present,
                              const std::vector<int>& lost) {
    gf::Matrix matrix(0, 0);
    require_ok(code.decode_matrix(present, lost, matrix), code);
    return to_array(matrix);
}

void reconstruct(const Code& code, const std::vector<int>& present, const py::sequence& block_arrays,
                 const std::vector<int>& lost, const py::sequence& out_arrays) {
    const auto blocks = views<const U8>(block_arrays, "blocks");
    const auto out = views<U8>(out_arrays, "out");
    require_count(blocks.views.size(), present.size(), "blocks");
    require_count(out.views.size(), lost.size(), "out");
    if (!out.views.empty()) require_size(out.views[0], blocks.size, "out[0]");
    require_targets_disjoint(blocks, "blocks", out, "out");
    CodeError error;
    {
        const py::gil_scoped_release release;
        error = code.reconstruct(blocks.size, present, blocks.pointers.data(), lost, out.pointers.data());
    }
    require_ok(error, code);
}

// Of the bytes of any contiguous buffer.
template <std::uint32_t (*run)(std::uint32_t, std::size_t, const U8*)>
std::uint32_t checksum(py::handle data, std::uint32_t value) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(data.ptr(), &buffer, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    const struct Release {
        Py_buffer* buffer;
        ~Release() { PyBuffer_Release(buffer); }
    } release_buffer{&buffer};
    const std::size_t bytes = static_cast<std::size_t>(buffer.len);
    const U8* from = static_cast<const U8*>(buffer.buf);
    // To let others run costs more than a small checksum.
    if (bytes < (std::size_t{64} << 10)) return run(value, bytes, from);
    const py::gil_scoped_release release;
    return run(value, bytes, from);
}

}  // namespace

void register_codec(py::module_& module) {
    using namespace py::literals;

    module.def("kernels", &runnable_kernels);
    module.def("compiled_kernels", &compiled_kernels);
    module.def("kernel", [] { return operations().name; });
    module.def("use_kernel", &bind_use_kernel, "name"_a);
    module.def("prefetch", &prefetch);
    module.def("use_prefetch", &use_prefetch, "cache"_a);
    module.def("threads", &threads::in_use);
    module.def("use_threads", &bind_use_threads, "count"_a, py::call_guard<py::gil_scoped_release>());

    module.def("kernel_functions", &kernel_functions);
    module.def("prepare_coefficients", &prepare_coefficients, "values"_a);

    module.def("crc32c", &checksum<crc32c>, "data"_a, "value"_a = 0);
    module.def("crc32c_by_table", &checksum<crc32c_by_table>, "data"_a, "value"_a = 0);
    module.def("crc32c_in_use", &crc32c_in_use);

    module.def("gf_multiply", &gf_multiply, "a"_a, "b"_a);
    module.def("gf_inverse", &gf_inverse, "a"_a);
    module.def("gf_invert_matrix", &gf_invert_matrix, "matrix"_a);

    py::class_<Code>(module, "Code")
        .def(py::init(&make_code), "k"_a, "r"_a, "generator"_a = "cauchy")
        .def_property_readonly("k", &Code::k)
        .def_property_readonly("r", &Code::r)
        .def_property_readonly("generator",
                               [](const Code& code) { return gf::generator_name(code.generator()); })
        .def_property_readonly("coefficients", [](const Code& code) { return to_array(code.matrix()); })
        .def("encode", &encode, "data"_a, "parity"_a)
        .def("fold", &fold, "parity_index"_a, "data_index"_a, "x"_a, "parity"_a)
        .def("fold_rows", &fold_rows, "parity_index"_a, "data_index"_a, "x"_a, "indices"_a, "parity"_a)
        .def("reconstruct", &reconstruct, "present"_a, "blocks"_a, "lost"_a, "out"_a)
        .def("decode_matrix", &decode_matrix, "present"_a, "lost"_a);
}

}  // namespace ecrec::bindings
