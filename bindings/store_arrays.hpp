// How the store's errors and results reach Python.
#pragma once

#include "base/bytes.hpp"
#include "base/error.hpp"
#include "buffer_view.hpp"

namespace ecrec::bindings {

// An array that owns the memory: no copy.
template <class T>
py::array_t<T> to_array(Growing<T>&& values) {
    const auto size = static_cast<py::ssize_t>(values.size());
    if (size == 0) return py::array_t<T>(py::ssize_t{0});
    T* data = values.release();
    const py::capsule owner(data, [](void* memory) { blocks::release(memory); });
    return py::array_t<T>(size, data, owner);
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11 asks for this signature.
inline void translate_store_error(std::exception_ptr thrown) {
    try {
        if (thrown) std::rethrow_exception(thrown);
    } catch (const StoreError& error) {
        switch (error.kind()) {
            case ErrorKind::value: PyErr_SetString(PyExc_ValueError, error.what()); break;
            case ErrorKind::index: PyErr_SetString(PyExc_IndexError, error.what()); break;
            case ErrorKind::state: PyErr_SetString(PyExc_RuntimeError, error.what()); break;
        }
    }
}

}  // namespace ecrec::bindings
