"""A server imports nothing once it serves: what it was installed from may be another version by then, or be gone."""

import subprocess
import sys
from pathlib import Path

SERVES = """
import sys
import ecrec.launch.servers.ps
from cluster import Cluster, table
from ecrec.protocol import messages as m
from ecrec.protocol.events import Received
from ecrec.protocol.messages import TOOL, Address
from test_scrub import flip_parity

before = set(sys.modules)
spec = table(code="3+2", rows=60)
cluster = Cluster(5)
cluster.create(spec)
cluster.push(spec, {row: 1.0 + row for row in range(60)})
cluster.drain()
leader = cluster.shard(0).placement.classes[0].parity[0]
flip_parity(cluster, leader, 0)
cluster.give(cluster.shards[leader], Received(Address(TOOL, 7, 0), m.Scrub(1, 0, 0, 10_000, True)))
cluster.run()
assert cluster.shard(leader).scrubs.corrected == 1
cluster.kill(2)
cluster.replace(2)
cluster.drain()
cluster.scrub()
print(sorted(set(sys.modules) - before))
"""


def test_nothing_is_imported_in_the_middle_of_a_scrub_or_a_recovery() -> None:
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", SERVES], cwd=here, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == "[]"
