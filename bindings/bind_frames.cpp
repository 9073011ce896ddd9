// Whole messages of ZeroMQ sockets, each sent or received in one call. Frames that are large are sent out of the memory of
// their Python object and received as arrays over ZeroMQ's own memory; small ones are copied, which is cheaper.
//
// pyzmq does the former too, but wakes a thread of its own, which needs the interpreter, for each frame that was sent.
// The library is pyzmq's, found at run time: its functions are handed in by their addresses.
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
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
    std::size_t frames_max;    // of a message that arrives
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

// The frames of a message, all made before the first is sent: half a message would become the beginning of the next one.
class Outgoing {
public:
    Outgoing(const Zmq& zmq, std::size_t frames_expected) : zmq_(zmq) { messages_.reserve(frames_expected); }
    ~Outgoing() {
        for (Message& message : messages_) zmq_.msg_close(&message);
    }
    Outgoing(const Outgoing&) = delete;
    Outgoing& operator=(const Outgoing&) = delete;

    void add(py::handle frame) {
        auto lent = std::make_unique<Lent>();
        if (PyObject_GetBuffer(frame.ptr(), &lent->buffer, PyBUF_SIMPLE) != 0) throw py::error_already_set();
        const std::size_t size = static_cast<std::size_t>(lent->buffer.len);
        Message message;
        int failed = 0;
        if (size < zmq_.copied_below) {
            failed = zmq_.msg_init_size(&message, size);
            if (failed == 0 && size != 0) std::memcpy(zmq_.msg_data(&message), lent->buffer.buf, size);
            PyBuffer_Release(&lent->buffer);
        } else {
            failed = zmq_.msg_init_data(&message, lent->buffer.buf, size, put_aside, lent.get());
            if (failed != 0) PyBuffer_Release(&lent->buffer);
            if (failed == 0) static_cast<void>(lent.release());
        }
        if (failed != 0) throw std::bad_alloc();
        try {
            messages_.push_back(message);
        } catch (...) {
            zmq_.msg_close(&message);
            throw;
        }
    }

    // 0, or an errno; a negative one if frames went before the one that could not be sent.
    int send(void* socket) {
        for (std::size_t i = 0; i < messages_.size(); ++i) {
            const int flags = i + 1 < messages_.size() ? dont_wait | send_more : dont_wait;
            while (zmq_.msg_send(&messages_[i], socket, flags) < 0) {
                const int error = zmq_.error();
                if (error != EINTR) return i == 0 ? error : -error;
            }
        }
        return 0;
    }

private:
    const Zmq& zmq_;
    std::vector<Message> messages_;
};

int send_frames(std::uintptr_t socket, const std::optional<py::bytes>& route, const py::sequence& frames) {
    const Zmq& zmq = library();
    release_sent();
    Outgoing outgoing(zmq, py::len(frames) + 1);
    if (route) outgoing.add(*route);
    for (const py::handle frame : frames) outgoing.add(frame);
    return outgoing.send(reinterpret_cast<void*>(socket));
}

// A new object, or the exception that Python has for it.
template <class Object>
Object owned(PyObject* object) {
    if (object == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<Object>(object);
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
    py::bytes bytes() {
        return owned<py::bytes>(
            PyBytes_FromStringAndSize(reinterpret_cast<const char*>(data()), static_cast<py::ssize_t>(size())));
    }
    py::str property(const char* name) {
        const char* text = zmq.msg_gets(&message, name);
        if (text == nullptr) text = "";
        return owned<py::str>(PyUnicode_DecodeUTF8(text, static_cast<py::ssize_t>(std::strlen(text)), "replace"));
    }
    // Of the connection on which it came, as zmq_msg_get(ZMQ_SRCFD) finds it; -1 where that is not known.
    int descriptor() {
        const char* text = zmq.msg_gets(&message, "__fd");
        int number = -1;
        if (text != nullptr) std::from_chars(text, text + std::strlen(text), number);
        return number;
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
    // The receiver frees it. NOLINTNEXTLINE(bugprone-unused-return-value)
    static_cast<void>(frame.release());
    return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(size), data, owner);
}

// Frame after frame of one message. However the reader is left, the frames that it did not take are dropped: they would begin
// the next message.
class Incoming {
public:
    Incoming(const Zmq& zmq, void* socket) : zmq_(zmq), socket_(socket) {}
    ~Incoming() {
        while (more_) {
            Received rest(zmq_);
            int taken = 0;
            while ((taken = zmq_.msg_recv(&rest.message, socket_, 0)) < 0 && zmq_.error() == EINTR) {
            }
            more_ = taken >= 0 && rest.more();
        }
    }
    Incoming(const Incoming&) = delete;
    Incoming& operator=(const Incoming&) = delete;

    // Null: there is none.
    std::unique_ptr<Received> take(int flags) {
        auto frame = std::make_unique<Received>(zmq_);
        if (!frame->receive(socket_, flags)) return nullptr;
        more_ = frame->more();
        return frame;
    }
    // The other frames of a message are there with the first.
    std::unique_ptr<Received> next() {
        auto frame = take(0);
        if (frame == nullptr) throw py::value_error("receive_frames: a message has no end");
        return frame;
    }
    bool more() const { return more_; }

private:
    const Zmq& zmq_;
    void* socket_;
    bool more_ = false;
};

// (route, frames, user id, address of the peer, descriptor of its connection), or None.
py::object receive_frames(std::uintptr_t socket, bool routed) {
    const Zmq& zmq = library();
    release_sent();
    Incoming incoming(zmq, reinterpret_cast<void*>(socket));
    auto frame = incoming.take(dont_wait);
    if (frame == nullptr) return py::none();
    py::bytes route;
    py::list frames;
    if (routed) {
        route = frame->bytes();
        if (!incoming.more()) return py::make_tuple(route, frames, py::str(), py::str(), -1);
        frame = incoming.next();
    }
    const py::str user = frame->property("User-Id"), peer = frame->property("Peer-Address");
    const int descriptor = routed ? frame->descriptor() : -1;
    if (frame->size() < zmq.copied_below) {
        frames.append(frame->bytes());
    } else {
        frames.append(to_array(std::move(frame)));
    }
    while (incoming.more() && frames.size() < zmq.frames_max) frames.append(to_array(incoming.next()));
    return py::make_tuple(route, frames, user, peer, descriptor);
}

void use_zmq(const py::dict& functions, std::size_t copied_below, std::size_t frames_max) {
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
    found.frames_max = frames_max;
    zmq = found;
}

}  // namespace

void register_frames(py::module_& module) {
    using namespace py::literals;
    module.def("use_zmq", &use_zmq, "functions"_a, "copied_below"_a, "frames_max"_a);
    module.def("send_frames", &send_frames, "socket"_a, "route"_a, "frames"_a);
    module.def("receive_frames", &receive_frames, "socket"_a, "routed"_a);
    module.def("release_sent", &release_sent);
}

}  // namespace ecrec::bindings
