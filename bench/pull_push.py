"""What a pull + push of `ecrec bench rpc` costs whom, and what the kernel alone takes for its bytes.

    python bench/pull_push.py --code 1+0 --seconds 5

Prints the wall-clock time of a step of ours, the processor time of each kind of thread (Linux: /proc/*/schedstat), and
the floor: the pulled rows and the gradients there and back between two processes over plain loopback TCP.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections import Counter
from pathlib import Path

from ecrec.launch.tools.bench import local_shards, set_up_process
from ecrec.protocol.placement import CodeSpec

STEPS = 100
"""In a round, whose end waits until all is durable."""
FLOOR_TURNS = 400


def processor_ns() -> Counter[str]:
    """Nanoseconds used so far by this process ("client") and its children, by kind of thread."""
    used: Counter[str] = Counter()
    me = os.getpid()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if me not in (parent, int(process.name)):
                continue
            is_shard = "--shard" in (process / "cmdline").read_text().split("\0")
            kind = "client" if parent != me else "shards" if is_shard else "scheduler"
            for task in (process / "task").iterdir():
                name = "ZeroMQ" if (task / "comm").read_text().startswith("ZMQbg") else "Python"
                used[f"{kind}, {name}"] += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return used


def floor_ms(size: int) -> float:
    """Median of the time that so many bytes take there and back, one process writing while the other reads."""

    def receive(connection: socket.socket, into: memoryview) -> bool:
        done = 0
        while done < size:
            if not (count := connection.recv_into(into[done:])):
                return False
            done += count
        return True

    payload, place = bytes(size), memoryview(bytearray(size))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            with socket.create_connection(listener.getsockname()) as connection:
                while receive(connection, place):
                    connection.sendall(payload)
            os._exit(0)
        times = []
        with listener.accept()[0] as connection:
            for _ in range(FLOOR_TURNS):
                start = time.perf_counter()
                connection.sendall(payload)
                receive(connection, place)
                times.append(time.perf_counter() - start)
        os.waitpid(child, 0)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", default="1+0")
    parser.add_argument("--transport", choices=["ipc", "tcp"], default="ipc")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    code = CodeSpec.parse(options.code)
    set_up_process()
    from ecrec.bench.rpc import Ours
    from ecrec.bench.workload import PULLED, SERVED_DIM
    from ecrec.training.joining import connect

    floor = floor_ms(4 * PULLED * SERVED_DIM)
    with local_shards(code.k + code.r, options.transport) as endpoint, connect(endpoint) as session:
        ours = Ours(session, code.k, code.r)
        ours.steps(STEPS, 0)
        before, rounds, start = processor_ns(), list[float](), time.perf_counter()
        while time.perf_counter() - start < options.seconds:
            rounds.append(1e3 * ours.steps(STEPS, STEPS * len(rounds)) / STEPS)
        used, steps = processor_ns() - before, STEPS * len(rounds)
    print(f"{options.code}: {statistics.median(rounds):.2f} ms a step, {min(rounds):.2f} in the best round")
    print(f"the bytes of pull and push over plain TCP: {floor:.2f} ms")
    print(f"processor time: {sum(used.values()) / 1e6 / steps:.2f} ms a step")
    for kind, ns in sorted(used.items()):
        print(f"  {kind:20s} {ns / 1e6 / steps:.2f} ms")


if __name__ == "__main__":
    main()
