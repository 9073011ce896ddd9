"""Messages in one native call, and waiting for several sockets."""

import ctypes
import errno
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import zmq

from ecrec._native import receive_frames, release_sent, send_frames, use_zmq
from ecrec.errors import WireError
from ecrec.protocol import wire
from ecrec.protocol.messages import SHARD, Address, ClusterQuery
from ecrec.transport import link, links
from ecrec.transport.poller import Poller

DEADLINE_S = 20.0
SMALL, LARGE = (1 << 16) - 1, 1 << 16

Pair = tuple[Any, Any]


@pytest.fixture
def pair(tmp_path: Any) -> Iterator[Pair]:
    """A DEALER and the ROUTER it is connected to."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer, context.socket(zmq.ROUTER) as router:
        for socket in (dealer, router):
            socket.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.bind(f"ipc://{tmp_path}/r")
        dealer.connect(f"ipc://{tmp_path}/r")
        yield dealer, router


def receive(socket: Any, routed: bool) -> tuple[bytes, list[Any]]:
    assert socket.poll(DEADLINE_S * 1e3)
    message = receive_frames(socket.underlying, routed)
    assert message is not None
    return message[:2]


def send(socket: Any, frames: list[Any], route: bytes | None = None) -> int:
    deadline = time.monotonic() + DEADLINE_S
    while (error := send_frames(socket.underlying, route, frames)) == errno.EAGAIN:
        assert time.monotonic() < deadline
    return error


@pytest.mark.parametrize("sizes", [[0], [1, 0], [100, SMALL, LARGE], [LARGE, 3, 1 << 21], [5, *[7] * 100]])
def test_a_message_comes_as_it_was_sent_and_its_answer_too(pair: Pair, sizes: list[int]) -> None:
    dealer, router = pair
    rng = np.random.default_rng(len(sizes))
    frames = [rng.integers(0, 256, size, np.uint8) for size in sizes]
    assert send(dealer, frames) == 0
    route, came = receive(router, routed=True)
    assert [bytes(frame) for frame in came] == [frame.tobytes() for frame in frames]
    assert send(router, came, route) == 0
    nobody, back = receive(dealer, routed=False)
    assert nobody == b""
    assert [bytes(frame) for frame in back] == [frame.tobytes() for frame in frames]
    for frame in back[1:]:
        assert frame.dtype == np.uint8 and frame.ctypes.data % 8 == 0
    assert receive_frames(dealer.underlying, False) is None


def test_a_large_buffer_is_sent_out_of_its_own_memory_and_then_let_go(pair: Pair) -> None:
    dealer, router = pair
    array = np.zeros(1 << 20, np.uint8)
    alive = weakref.ref(array)
    assert send(dealer, [b"head", array]) == 0
    del array
    assert [len(frame) for frame in receive(router, routed=True)[1]] == [4, 1 << 20]
    deadline = time.monotonic() + DEADLINE_S
    while alive() is not None:
        release_sent()
        assert time.monotonic() < deadline


def test_an_array_keeps_what_was_received(pair: Pair) -> None:
    dealer, router = pair
    assert send(dealer, [b"head", np.full(1 << 20, 7, np.uint8)]) == 0
    _, (_, frame) = receive(router, routed=True)
    assert send(dealer, [b"head", np.full(1 << 20, 8, np.uint8)]) == 0
    receive(router, routed=True)
    gc.collect()
    assert np.all(frame == 7)


def test_nobody_there_is_an_error_number(pair: Pair) -> None:
    _, router = pair
    assert send_frames(router.underlying, b"who", [b"x"]) == errno.EHOSTUNREACH
    with zmq.Context() as context, context.socket(zmq.DEALER) as alone:
        assert send_frames(alone.underlying, None, [b"x", b"y"]) == errno.EAGAIN


def test_a_message_with_a_bad_frame_is_not_sent_in_part(pair: Pair) -> None:
    dealer, router = pair
    assert send(dealer, [b"first"]) == 0
    with pytest.raises((TypeError, BufferError, ValueError)):
        send_frames(dealer.underlying, None, [b"head", np.zeros((4, 4))[:, 1]])
    with pytest.raises(TypeError):
        send_frames(dealer.underlying, None, [b"head", 5])
    assert send(dealer, [b"second"]) == 0
    assert receive(router, routed=True)[1] == [b"first"]
    assert receive(router, routed=True)[1] == [b"second"]


class Failing:
    """libzmq, of which one function fails at its ``at``-th call."""

    def __init__(self, name: str, at: int, error: int = errno.EFAULT) -> None:
        self.calls = 0
        self._functions = link.zmq_functions()
        signature = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 5)
        real = signature(self._functions[name])

        def call(*arguments: Any) -> int:
            self.calls += 1
            return -1 if self.calls == at else real(*arguments)

        self._call = signature(call)
        self._error = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: error)
        self._functions[name] = self._address(self._call)
        if error:
            self._functions["zmq_errno"] = self._address(self._error)

    @staticmethod
    def _address(function: Any) -> int:
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    def __enter__(self) -> "Failing":
        use_zmq(self._functions, link.COPY_BELOW_BYTES, link.FRAMES_TAKEN_MAX)
        return self

    def __exit__(self, *exc: object) -> None:
        use_zmq(link.zmq_functions(), link.COPY_BELOW_BYTES, link.FRAMES_TAKEN_MAX)


@pytest.mark.parametrize("at", range(1, 5))
@pytest.mark.parametrize("name", ["zmq_msg_init_size", "zmq_msg_init_data"])
def test_without_memory_for_a_frame_nothing_of_the_message_is_sent(pair: Pair, name: str, at: int) -> None:
    dealer, router = pair
    assert send(dealer, [b"first"]) == 0
    frames = [b"head", *[np.zeros(LARGE, np.uint8), b"small"] * 4]
    with Failing(name, at), pytest.raises(MemoryError):
        send_frames(dealer.underlying, None, frames)
    assert send(dealer, [b"second"]) == 0
    assert receive(router, routed=True)[1] == [b"first"]
    assert receive(router, routed=True)[1] == [b"second"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_send_that_fails_says_whether_a_part_was_taken(pair: Pair, at: int) -> None:
    dealer, router = pair
    assert send(dealer, [b"first"]) == 0
    with Failing("zmq_msg_send", at):
        error = send_frames(dealer.underlying, None, [b"head", np.zeros(LARGE, np.uint8), b"end"])
    assert error == (errno.EFAULT if at == 1 else -errno.EFAULT)
    assert receive(router, routed=True)[1] == [b"first"]
    if at == 1:
        assert send(dealer, [b"second"]) == 0
        assert receive(router, routed=True)[1] == [b"second"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_after_a_message_that_was_sent_in_part_a_new_connection_carries_the_next(tmp_path: Any, at: int) -> None:
    server, client = links.Links(f"ipc://{tmp_path}/s"), links.Links()
    address = Address(SHARD, 1, 1)
    try:
        client.connect(address, server.endpoint, watched=True)
        came: list[Any] = []
        again = False
        deadline = time.monotonic() + DEADLINE_S

        def until(done: Callable[[], bool]) -> None:
            nonlocal again
            while not done():
                assert time.monotonic() < deadline
                came.extend(arrived.parts for arrived in server.poll(5) if isinstance(arrived, links.Arrived))
                again |= any(isinstance(event, links.Linked) and event.again for event in client.poll(5))

        assert client.send(address, [b"first"])
        until(lambda: len(came) == 1)
        with Failing("zmq_msg_send", at, errno.EAGAIN):
            assert not client.send(address, [b"half", b"of", b"it"])
        if at > 1:
            until(lambda: again)
        assert client.send(address, [b"second"])
        until(lambda: len(came) == 2)
        assert [[bytes(part) for part in parts] for parts in came] == [[b"first"], [b"second"]]
    finally:
        client.close()
        server.close()


def test_a_message_that_cannot_be_received_takes_no_frame_of_the_next_one(pair: Pair) -> None:
    testcapi = pytest.importorskip("_testcapi")
    dealer, router = pair
    failed = 0
    message = [b"head", b"small", np.zeros(LARGE, np.uint8), b"end"]
    for allocation in range(1, 60):
        assert send(dealer, message) == 0
        assert send(dealer, [b"next"]) == 0
        assert router.poll(DEADLINE_S * 1e3)
        underlying, came = router.underlying, None
        testcapi.set_nomemory(allocation, allocation + 1)
        try:
            came = receive_frames(underlying, True)
        except (MemoryError, RuntimeError, SystemError):
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
        if came is not None:
            assert [bytes(frame) for frame in came[1]] == [bytes(frame) for frame in message]
        assert receive(router, routed=True)[1] == [b"next"]
    assert failed > 5


@pytest.mark.parametrize("at", [2, 3, 4])
def test_an_error_of_the_library_in_the_middle_drops_the_rest(pair: Pair, at: int) -> None:
    dealer, router = pair
    assert send(dealer, [b"head", b"a", b"b", b"c"]) == 0
    assert send(dealer, [b"next"]) == 0
    assert router.poll(DEADLINE_S * 1e3)
    with Failing("zmq_msg_recv", at), pytest.raises(ValueError, match="ZeroMQ error"):
        receive_frames(router.underlying, True)
    assert receive(router, routed=True)[1] == [b"next"]


def test_a_message_of_too_many_frames_is_cut_and_refused(pair: Pair) -> None:
    dealer, router = pair
    assert send(dealer, [b"x"] * (wire.FRAMES_MAX + 50)) == 0
    assert send(dealer, [b"next"]) == 0
    frames = receive(router, routed=True)[1]
    assert len(frames) == wire.FRAMES_MAX + 2
    head = wire.encode(ClusterQuery(1), (), Address(SHARD, 1, 1), Address(SHARD, 2, 1))[0]
    with pytest.raises(WireError, match="0 frames announced"):
        wire.decode([head, *frames[1:]])
    assert receive(router, routed=True)[1] == [b"next"]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_no_news_is_lost_between_sending_and_waiting(pair: Pair, at_once: int) -> None:
    """Both sides answer what they get and send more of their own, so that calls on a socket take in its news."""
    count = 2000
    sockets = dict(zip(("dealer", "router"), pair, strict=True))
    pollers = {name: Poller() for name in sockets}
    got: dict[str, list[int]] = {name: [] for name in sockets}
    routes: list[bytes] = []

    def take(name: str) -> bool:
        for _ in range(at_once):
            message = receive_frames(sockets[name].underlying, name == "router")
            if message is None:
                return False
            if name == "router":
                routes[:] = [message[0]]
            got[name].append(int(message[1][0]))
        return True

    for name, socket in sockets.items():
        pollers[name].register(socket, partial(take, name))
    sent = dict.fromkeys(sockets, 0)
    deadline = time.monotonic() + DEADLINE_S
    while min(map(len, got.values())) < count:
        assert time.monotonic() < deadline, f"{ {name: len(numbers) for name, numbers in got.items()} } came"
        for name, socket in sockets.items():
            if sent[name] < count and (name == "dealer" or routes):
                route = routes[0] if name == "router" else None
                if send_frames(socket.underlying, route, [b"%d" % sent[name]]) == 0:
                    sent[name] += 1
                pollers[name].look_again(socket)
            pollers[name].receive()
            # Without more to send there is nothing but the wait that could tell.
            pollers[name].wait(1000 if sent[name] == count and len(got[name]) < count else 0)
    assert got["dealer"] == got["router"] == list(range(count))
    for name, socket in sockets.items():
        pollers[name].unregister(socket)
