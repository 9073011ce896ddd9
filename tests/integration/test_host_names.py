"""Servers that are reached by name, while the names go and the name server answers nobody."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import SHARDS, Cluster

from ecrec.transport import links
from ecrec.transport.names import Names

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NAME_SERVER = f"127.66.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
"""Takes questions and answers none, so that each look-up of a name that is in no file takes 10 s."""
MOUNTED = 'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"'


class Named(Cluster):
    """Each server and the scheduler has a name, out of a file that a test can change."""

    def names(self, *names: str) -> None:
        """Those that are known from now on."""
        # In place: the file is mounted.
        with (self.directory / "hosts").open("w") as hosts:
            hosts.writelines(f"127.0.0.1 {name}\n" for name in ("localhost", *names))

    def program(self, name: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        (self.directory / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\noptions timeout:5 attempts:2\n")
        with (self.directory / f"{len(self.running)}.log").open("w") as log:
            process = subprocess.Popen(
                ["unshare", "--mount", "bash", "-c", MOUNTED, str(self.directory),
                 sys.executable, "-m", f"ecrec.launch.servers.{name}", *arguments],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.running.append(process)
        return process

    def scheduler(self, *more: str) -> None:
        super().scheduler(*more)
        self.endpoint = self.endpoint.replace("127.0.0.1", "leader")

    def shard(self, *arguments: str) -> "subprocess.Popen[str]":
        name = f"ps-{arguments[1]}" if "--shard" in arguments else "localhost"
        return super().shard("--advertise", name, *arguments)

    def bind(self) -> str:
        return "tcp://127.0.0.1:0"


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Named]:
    if not ROOT or shutil.which("unshare") is None:
        pytest.skip("files of name servers of its own need root and unshare")
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    everywhere = {"leader": ("127.0.0.1",), **{f"ps-{shard}": ("127.0.0.1",) for shard in range(SHARDS)}}
    everywhere["localhost"] = ("127.0.0.1",)
    # The worker is in this process, whose files are the machine's.
    monkeypatch.setattr(links, "Names", lambda: Names(everywhere.__getitem__))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind((NAME_SERVER, 53))
        made = Named(tmp_path, "tcp")
        made.names("leader", *(f"ps-{shard}" for shard in range(SHARDS)))
        yield made
        made.close()


def test_the_name_of_a_dead_server_is_gone_and_no_name_server_answers(named: Named) -> None:
    """The living go on at once: they have connections to keep, and a death to recover from."""
    shards = named.start()
    named.push(20)
    named.names("leader", *(f"ps-{shard}" for shard in range(SHARDS) if shard != 2))
    shards[2].kill()
    named.push(10)
    named.shard("--spare")
    named.push(30)
    state = named.whole({2: 2})
    named.check(60)
    assert [shard.epoch for shard in state.shards] == [1, 1, 2, 1, 1], named.logs()


def test_the_schedulers_name_is_gone_and_training_goes_on(named: Named) -> None:
    named.start()
    named.push(10)
    named.names(*(f"ps-{shard}" for shard in range(SHARDS)))
    named.stop_scheduler()
    before = time.monotonic()
    for _ in range(5):
        named.push(10)
        assert named.worker
        named.worker.flush()
    assert time.monotonic() - before < 10, "a look-up takes 10 s"
    named.names("leader", *(f"ps-{shard}" for shard in range(SHARDS)))
    port = named.endpoint.rpartition(":")[2]
    named.endpoint = f"tcp://127.0.0.1:{port}"
    named.scheduler()
    named.check(60)
    assert [shard.epoch for shard in named.wait(lambda state: True).shards] == [1] * SHARDS
