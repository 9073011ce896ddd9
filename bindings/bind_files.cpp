// Files of checkpoints: written by native threads, from the memory of the Python objects that are handed in.
#include <pybind11/stl.h>

#include <cerrno>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "files/durable_file.hpp"
#include "files/file_writer.hpp"
#include "register.hpp"

namespace ecrec::bindings {

namespace py = pybind11;
namespace {

// Buffers of Python objects, kept for as long as this is.
class Borrowed {
public:
    explicit Borrowed(const py::sequence& objects) {
        buffers_.reserve(py::len(objects));
        try {
            for (const py::handle object : objects) {
                Py_buffer buffer;
                if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_SIMPLE) != 0) throw py::error_already_set();
                buffers_.push_back(buffer);
            }
        } catch (...) {
            release();
            throw;
        }
    }
    ~Borrowed() { release(); }
    Borrowed(Borrowed&& other) noexcept : buffers_(std::exchange(other.buffers_, {})) {}
    Borrowed& operator=(Borrowed&&) = delete;
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;

    std::vector<files::Bytes> bytes() const {
        std::vector<files::Bytes> found;
        for (const Py_buffer& buffer : buffers_) {
            if (buffer.len == 0) continue;
            found.emplace_back(static_cast<const std::uint8_t*>(buffer.buf), static_cast<std::size_t>(buffer.len));
        }
        return found;
    }
    // Never let go of them: a thread may read them until the process ends.
    void forget() { buffers_.clear(); }

private:
    void release() {
        for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
        buffers_.clear();
    }
    std::vector<Py_buffer> buffers_;
};

void raise(const files::Written& written) {
    errno = written.error;
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, written.place.c_str());
    throw py::error_already_set();
}

std::pair<std::size_t, std::uint32_t> write_file(const std::string& path, const std::string& partial,
                                                 const py::sequence& buffers) {
    const Borrowed borrowed(buffers);
    files::Written written;
    {
        const py::gil_scoped_release released;
        written = files::write_durably(path, partial, borrowed.bytes());
    }
    if (written.error != 0) raise(written);
    return {written.bytes, written.crc32c};
}

class Writer {
public:
    Writer() = default;
    ~Writer() { close(); }
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;

    std::uint64_t submit(std::string path, std::string partial, std::string absent, const py::sequence& buffers,
                         bool urgent) {
        if (closed_) throw std::runtime_error("FileWriter: it is closed");
        Borrowed borrowed(buffers);
        files::Job job{++last_, std::move(path), std::move(partial), std::move(absent), borrowed.bytes(), urgent};
        borrowed_.emplace(last_, std::move(borrowed));
        try {
            writer_.submit(std::move(job));
        } catch (...) {
            borrowed_.erase(last_);
            throw;
        }
        return last_;
    }

    using Result = std::tuple<std::uint64_t, std::size_t, std::uint32_t, int, std::string>;
    std::vector<Result> take() {
        std::vector<Result> found;
        for (files::Done& done : writer_.take()) {
            borrowed_.erase(done.id);
            const int error = done.was_there ? EEXIST : done.written.error;
            found.emplace_back(done.id, done.written.bytes, done.written.crc32c, error, std::move(done.written.place));
        }
        return found;
    }

    void close() {
        closed_ = true;
        for (const std::uint64_t id : writer_.close()) borrowed_.erase(id);
        take();
        for (auto& [id, borrowed] : borrowed_) borrowed.forget();
        borrowed_.clear();
    }

private:
    files::FileWriter writer_;
    std::unordered_map<std::uint64_t, Borrowed> borrowed_;
    std::uint64_t last_ = 0;
    bool closed_ = false;
};

}  // namespace

void register_files(py::module_& module) {
    using namespace py::literals;
    module.def("write_file", &write_file, "path"_a, "partial"_a, "buffers"_a);
    py::class_<Writer>(module, "FileWriter")
        .def(py::init<>())
        .def("submit", &Writer::submit, "path"_a, "partial"_a, "absent"_a, "buffers"_a, "urgent"_a = false)
        .def("take", &Writer::take)
        .def("close", &Writer::close);
}

}  // namespace ecrec::bindings
