// Checked views of numpy arrays. Every check throws the Python exception that the caller will see, naming the
// argument.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace ecrec::bindings {

namespace py = pybind11;

// A C-contiguous, aligned array of T (const T: readable, T: writable). Keeps the array alive; `data` may be
// used without the GIL.
template <class T>
struct View {
    py::array array;
    T* data;
    std::size_t size;  // elements

    std::size_t bytes() const { return size * sizeof(T); }
    py::ssize_t dimensions() const { return array.ndim(); }
    std::size_t extent(int axis) const { return static_cast<std::size_t>(array.shape(axis)); }
    std::span<T> span() const { return {data, size}; }
};

inline std::string element_name(const std::string& name, std::size_t index) {
    return name + "[" + std::to_string(index) + "]";
}

template <class T>
View<T> view(py::handle object, const std::string& name) {
    using Element = std::remove_const_t<T>;
    const py::dtype wanted = py::dtype::of<Element>();
    if (!py::isinstance<py::array>(object)) {
        throw py::type_error(name + ": expected a numpy array of " + std::string(py::str(wanted)) + ", got " +
                             std::string(py::str(py::type::of(object))));
    }
    auto array = py::reinterpret_borrow<py::array>(object);
    if (!py::detail::npy_api::get().PyArray_EquivTypes_(array.dtype().ptr(), wanted.ptr())) {
        throw py::type_error(name + ": expected dtype " + std::string(py::str(wanted)) + ", got " +
                             std::string(py::str(array.dtype())));
    }
    if (!(array.flags() & py::array::c_style)) throw py::type_error(name + ": expected a C-contiguous array");
    if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) {
        throw py::type_error(name + ": expected an array aligned to its elements");
    }
    T* data = nullptr;
    if constexpr (std::is_const_v<T>) {
        data = static_cast<T*>(array.data());
    } else {
        if (!array.writeable()) throw py::type_error(name + ": expected a writable array");
        data = static_cast<T*>(array.mutable_data());
    }
    const auto size = static_cast<std::size_t>(array.size());
    return {std::move(array), data, size};
}

template <class T>
View<const T> readable(py::handle object, const std::string& name) {
    return view<const T>(object, name);
}

template <class T>
View<T> writable(py::handle object, const std::string& name) {
    return view<T>(object, name);
}

template <class T>
void require_size(const View<T>& view, std::size_t expected, const std::string& name) {
    if (view.size != expected) {
        throw py::value_error(name + ": expected " + std::to_string(expected) + " elements, got " +
                              std::to_string(view.size));
    }
}

template <class T>
void require_dimensions(const View<T>& view, py::ssize_t expected, const std::string& name) {
    if (view.dimensions() != expected) {
        throw py::value_error(name + ": expected " + std::to_string(expected) + " dimensions, got " +
                              std::to_string(view.dimensions()));
    }
}

template <class A, class B>
void require_disjoint(const View<A>& a, const std::string& a_name, const View<B>& b,
                      const std::string& b_name) {
    const auto a_first = reinterpret_cast<std::uintptr_t>(a.data);
    const auto b_first = reinterpret_cast<std::uintptr_t>(b.data);
    if (a_first < b_first + b.bytes() && b_first < a_first + a.bytes()) {
        throw py::value_error(a_name + " and " + b_name + " overlap");
    }
}

// A sequence of arrays of one size. `size` of an empty sequence is 0.
template <class T>
struct Views {
    std::vector<View<T>> views;
    std::vector<T*> pointers;
    std::size_t size = 0;  // elements of each
};

template <class T>
Views<T> views(const py::sequence& sequence, const std::string& name) {
    Views<T> all;
    std::size_t index = 0;
    for (const py::handle object : sequence) {
        const std::string element = element_name(name, index);
        all.views.push_back(view<T>(object, element));
        if (index == 0) all.size = all.views[0].size;
        require_size(all.views[index], all.size, element);
        all.pointers.push_back(all.views[index].data);
        ++index;
    }
    return all;
}

// A new array that owns the vector's memory: no copy.
template <class T>
py::array_t<T> move_to_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
    auto owner = std::make_unique<std::vector<T>>(std::move(values));
    T* data = owner->data();
    py::capsule capsule(owner.get(), [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
    owner.release();
    return py::array_t<T>(std::move(shape), data, capsule);
}

}  // namespace ecrec::bindings
