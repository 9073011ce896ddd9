// Whole messages of ZeroMQ sockets, each sent or received in one call. Frames that are large are sent out of the memory of
// their Python object and received as arrays over ZeroMQ's own memory; small ones are copied, which is cheaper.
//
// pyzmq does the former too, but wakes a thread of its own, which needs the interpreter, for each frame that was sent.
// The library is pyzmq's, found at run time: its functions are handed in by their addresses.
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "buffer_view.hpp"
#include "register.hpp"

namespace ecrec::bindings {
namespace {

constexpr int dont_wait = 1, send_more = 2;  // ZMQ_DONTWAIT, ZMQ_SNDMORE

// zmq_msg_t: 64 opaque bytes.
struct alignas(8) Message {
    std::array<unsigned char, 64> opaque;
};

struct Zmq {
    int (*msg_init)(Message*);
    int (*msg_init_size)(Message*, std::size_t);
    int (*msg_init_data)(Message*, void*, std::size_t, void (*)(void*, void*), void*);
    int (*msg_send)(Message*, void*, int);
    int (*msg_recv)(Message*, void*, int);
    int (*msg_close)(Message*);
    void* (*msg_data)(Message*);
    std::size_t (*msg_size)(const Message*);
    int (*msg_more)(const Message*);
    const char* (*msg_gets)(const Message*, const char*);
    int (*error)();
    std::size_t copied_below;  // bytes
};
std::optional<Zmq> zmq;

const Zmq& library() {
    if (!zmq) throw std::runtime_error("use_zmq has not been called");
    return *zmq;
}

// What a frame on its way was made of. ZeroMQ is done with it in a thread without the interpreter, so it is put aside
// there, and let go of when the interpreter comes by.
struct Lent {
    Py_buffer buffer;
    Lent* next;
};
std::atomic<Lent*> done{nullptr};

void put_aside(void*, void* hint) {
    Lent* lent = static_cast<Lent*>(hint);
    lent->next = done.load(std::memory_order_relaxed);
    while (!done.compare_exchange_weak(lent->next, lent, std::memory_order_release, std::memory_order_relaxed)) {
    }
}

void release_sent() {
    Lent* lent = done.exchange(nullptr, std::memory_order_acquire);
    while (lent != nullptr) {
        const std::unique_ptr<Lent> owner(lent);
        lent = owner->next;
        PyBuffer_Release(&owner->buffer);
    }
}

std::unique_ptr<Lent> lend(py::handle frame) {
    auto lent = std::make_unique<Lent>();
    if (PyObject_GetBuffer(frame.ptr(), &lent->buffer, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    return lent;
}

// Releases what is not given to ZeroMQ.
struct Outgoing {
    std::vector<std::unique_ptr<Lent>> frames;

    ~Outgoing() {
        for (const auto& lent : frames) {
            if (lent) PyBuffer_Release(&lent->buffer);
        }
    }
};

// 0, or an errno.
int send_frame(const Zmq& zmq, void* socket, std::unique_ptr<Lent>& lent, int flags) {
    const std::size_t size = static_cast<std::size_t>(lent->buffer.len);
    Message message;
    if (size < zmq.copied_below) {
        if (zmq.msg_init_size(&message, size) != 0) throw std::bad_alloc();
        if (size != 0) std::memcpy(zmq.msg_data(&message), lent->buffer.buf, size);
    } else {
        if (zmq.msg_init_data(&message, lent->buffer.buf, size, put_aside, lent.get()) != 0) throw std::bad_alloc();
        static_cast<void>(lent.release());
    }
    while (zmq.msg_send(&message, socket, flags) < 0) {
        const int error = zmq.error();
        if (error == EINTR) continue;
        zmq.msg_close(&message);
        return error;
    }
    return 0;
}

int send_frames(std::uintptr_t socket, const std::optional<py::bytes>& route, const py::sequence& frames) {
    const Zmq& zmq = library();
    release_sent();
    // All before the first is sent: half a message would become the beginning of the next one.
    Outgoing outgoing;
    if (route) outgoing.frames.push_back(lend(*route));
    for (const py::handle frame : frames) outgoing.frames.push_back(lend(frame));
    for (std::size_t i = 0; i < outgoing.frames.size(); ++i) {
        const int flags = i + 1 < outgoing.frames.size() ? dont_wait | send_more : dont_wait;
        const int error = send_frame(zmq, reinterpret_cast<void*>(socket), outgoing.frames[i], flags);
        if (error != 0) return error;
    }
    return 0;
}

struct Received {
    explicit Received(const Zmq& zmq) : zmq(zmq) { zmq.msg_init(&message); }
    ~Received() { zmq.msg_close(&message); }
    Received(const Received&) = delete;
    Received& operator=(const Received&) = delete;

    // False: there is none. Throws what the socket has to say.
    bool receive(void* socket, int flags) {
        while (zmq.msg_recv(&message, socket, flags) < 0) {
            const int error = zmq.error();
            if (error == EAGAIN) return false;
            if (error == EINTR) continue;
            throw py::value_error("receive_frames: ZeroMQ error " + std::to_string(error));
        }
        return true;
    }
    std::uint8_t* data() { return static_cast<std::uint8_t*>(zmq.msg_data(&message)); }
    std::size_t size() const { return zmq.msg_size(&message); }
    bool more() const { return zmq.msg_more(&message) != 0; }
    py::bytes bytes() { return {reinterpret_cast<const char*>(data()), size()}; }
    py::str property(const char* name) {
        const char* text = zmq.msg_gets(&message, name);
        return text == nullptr ? py::str() : py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
            text, static_cast<py::ssize_t>(std::strlen(text)), "replace"));
    }

    const Zmq& zmq;
    Message message;
};

// The frame as an array in memory that is aligned for every number; of the frame itself where it is large.
py::array_t<std::uint8_t> to_array(std::unique_ptr<Received> frame) {
    const std::size_t size = frame->size();
    std::uint8_t* const data = frame->data();
    if (size < frame->zmq.copied_below || reinterpret_cast<std::uintptr_t>(data) % alignof(std::uint64_t) != 0) {
        py::array_t<std::uint8_t> copy(static_cast<py::ssize_t>(size));
        if (size != 0) std::memcpy(copy.mutable_data(), data, size);
        return copy;
    }
    py::capsule owner(frame.get(), [](void* pointer) { delete static_cast<Received*>(pointer); });
    static_cast<void>(frame.release());
    return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(size), data, owner);
}

// (route, frames, user id, address of the peer), or None.
py::object receive_frames(std::uintptr_t socket, bool routed) {
    const Zmq& zmq = library();
    release_sent();
    void* const handle = reinterpret_cast<void*>(socket);
    auto frame = std::make_unique<Received>(zmq);
    if (!frame->receive(handle, dont_wait)) return py::none();
    // The other frames of a message are there with the first.
    const auto next = [&] {
        if (!frame->more()) return false;
        frame = std::make_unique<Received>(zmq);
        frame->receive(handle, 0);
        return true;
    };
    py::bytes route;
    py::list frames;
    if (routed) {
        route = frame->bytes();
        if (!next()) return py::make_tuple(route, frames, py::str(), py::str());
    }
    const py::str user = frame->property("User-Id"), peer = frame->property("Peer-Address");
    if (frame->size() < zmq.copied_below) {
        frames.append(frame->bytes());
        if (!next()) return py::make_tuple(route, frames, user, peer);
    }
    for (bool more = true; more;) {
        more = frame->more();
        frames.append(to_array(std::move(frame)));
        if (!more) break;
        frame = std::make_unique<Received>(zmq);
        frame->receive(handle, 0);
    }
    return py::make_tuple(route, frames, user, peer);
}

void use_zmq(const py::dict& functions, std::size_t copied_below) {
    const auto take = [&]<class F>(const char* name, F*& function) {
        function = reinterpret_cast<F*>(py::cast<std::uintptr_t>(functions[name]));
    };
    Zmq found{};
    take("zmq_msg_init", found.msg_init);
    take("zmq_msg_init_size", found.msg_init_size);
    take("zmq_msg_init_data", found.msg_init_data);
    take("zmq_msg_send", found.msg_send);
    take("zmq_msg_recv", found.msg_recv);
    take("zmq_msg_close", found.msg_close);
    take("zmq_msg_data", found.msg_data);
    take("zmq_msg_size", found.msg_size);
    take("zmq_msg_more", found.msg_more);
    take("zmq_msg_gets", found.msg_gets);
    take("zmq_errno", found.error);
    found.copied_below = copied_below;
    zmq = found;
}

}  // namespace

void register_frames(py::module_& module) {
    using namespace py::literals;
    module.def("use_zmq", &use_zmq, "functions"_a, "copied_below"_a);
    module.def("send_frames", &send_frames, "socket"_a, "route"_a, "frames"_a);
    module.def("receive_frames", &receive_frames, "socket"_a, "routed"_a);
    module.def("release_sent", &release_sent);
}

}  // namespace ecrec::bindings
