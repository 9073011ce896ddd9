"""Messages in one native call, and waiting for several sockets."""

import errno
import gc
import time
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import zmq

import ecrec.transport.links  # names the library  # noqa: F401
from ecrec._native import receive_frames, release_sent, send_frames
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
