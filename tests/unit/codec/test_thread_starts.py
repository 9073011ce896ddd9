"""What the pool does where threads cannot start, and in a child of fork: never a crash, never a wait."""

import os
import subprocess
import sys
from textwrap import dedent

import pytest

WORK = """
    import os, resource, sys, threading
    import numpy as np
    from ecrec import _native
    from ecrec.codec import Code

    def encode():
        parity = [np.empty(2 << 20, np.uint8)]
        Code(2, 1).encode([np.full(2 << 20, value, np.uint8) for value in (1, 2)], parity)
        assert parity[0].tobytes() == bytes([3]) * (2 << 20)

    def allow(more_bytes):
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + more_bytes, resource.RLIM_INFINITY))
"""


def run(code: str) -> str:
    """Run it in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(WORK) + dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.skipif("ECREC_SANITIZED" in os.environ, reason="the sanitizers' own memory fills the address space")
def test_the_threads_that_start_do_the_work() -> None:
    # A stack of a thread takes 8 MiB of address space, which is what runs out.
    out = run(
        """
        resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, resource.RLIM_INFINITY))
        allow(60 << 20)
        count = _native.use_threads(200)
        assert count == _native.threads()
        others = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(3)]
        for other in others:
            other.start()  # of ZeroMQ, for example, which ends the process if it gets none
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        encode()
        assert _native.use_threads(20) == 20 == _native.threads()
        encode()
        print(count, flush=True)
        os._exit(0)
        """
    )
    assert 1 < int(out) < 200


@pytest.mark.skipif("ECREC_SANITIZED" in os.environ, reason="the sanitizers' own memory fills the address space")
def test_where_no_thread_starts_the_caller_works_alone() -> None:
    run(
        """
        allow(4 << 20)
        assert _native.use_threads(2) == 1 == _native.threads()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        encode()
        """
    )


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_a_child_of_fork_works_alone_and_may_start_threads_of_its_own(wanted: int) -> None:
    run(
        f"""
        _native.use_threads(3)
        ends = threading.Event()

        def go_on():
            while not ends.is_set():
                encode()

        busy = threading.Thread(target=go_on)
        busy.start()
        for _ in range(8):
            child = os.fork()
            if child == 0:
                assert _native.threads() == 1
                encode()
                assert _native.use_threads({wanted}) == {wanted} == _native.threads()
                encode()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert status == 0, status
        ends.set()
        busy.join()
        assert _native.threads() == 3
        """
    )


def test_threads_may_change_while_others_work() -> None:
    run(
        """
        workers = [threading.Thread(target=lambda: [encode() for _ in range(15)]) for _ in range(2)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            for count in (2, 1, 4):
                _native.use_threads(count)
        for worker in workers:
            worker.join()
        """
    )
