"""The live page of real clusters: a death, its recovery and the scheduler's restart are followed while they happen.

With ECREC_SCREENSHOTS=DIR the pictures of the page are kept there, to be looked at.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, executable
from pages import get
from processes import DEADLINE_S, Cluster
from runs import SMALL

from ecrec.launch.dashboard.feed import VERSION

needs_chromium = pytest.mark.skipif(executable() is None, reason="there is no Chromium here")
SIZES = {"desk": (1280, 1000), "phone": (390, 844)}
DEAD = 2


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as made:
        yield made
        assert made.errors == []


@pytest.fixture
def address() -> str:
    """Of a port that is free; the scheduler that is started again takes it once more."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def photograph(browser: Browser, name: str, folder: Path) -> None:
    """In the light and the dark, at both sizes; nothing may be cut off."""
    folder = Path(os.environ.get("ECREC_SCREENSHOTS") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    for size, (width, height) in SIZES.items():
        for dark in (False, True):
            browser.look(width, height, dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            path = folder / f"{name}-{size}-{'dark' if dark else 'light'}.png"
            browser.screenshot(path)
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000, "there is something on it"


def train_until(cluster: Cluster, condition: Callable[[], Any], what: str) -> None:
    """Push on while the condition does not hold."""
    worker = cluster.worker
    assert worker is not None
    deadline = time.monotonic() + DEADLINE_S
    figures = {"steps": 0.0, "examples": 0.0, "loss": 0.69, **worker.machine.figures}
    while not condition():
        assert time.monotonic() < deadline, f"{what}; logs: {cluster.logs()}"
        if worker.machine.can_push:
            worker.push()
            figures["steps"] += 1
            figures["examples"] += 200
            figures["loss"] = 0.4 + 0.3 / (1 + figures["steps"] / 100)
            figures["auc"] = 0.8 - 0.3 / (1 + figures["steps"] / 100)
            worker.machine.figures = dict(figures)
        worker.node.perform([])
        for _ in worker.node.pump(20):
            pass


@needs_chromium
def test_a_death_its_recovery_and_a_restart_of_the_scheduler_are_followed(
    cluster: Cluster, browser: Browser, address: str, tmp_path: Path
) -> None:
    shards = cluster.start("--http", address)
    url = f"http://{address}/"
    assert url.startswith("http://127.0.0.1:")
    browser.look(*SIZES["desk"])
    browser.open(url)

    def shown(script: str) -> None:
        train_until(cluster, lambda: browser.evaluate(script), script)

    shown("document.querySelectorAll('.tile[data-state=up]').length === 5")
    shown("document.querySelector('#verdict').textContent === 'All 5 servers are whole.'")
    shown("document.querySelectorAll('polyline').length >= 3")
    shown("/[1-9]/.test(document.querySelector('.value b').textContent)")
    photograph(browser, "1-whole", tmp_path)

    shards[DEAD].kill()
    shown(f"document.querySelectorAll('.tile')[{DEAD}].dataset.state === 'down'")
    verdict = browser.evaluate("document.querySelector('#verdict').textContent")
    assert verdict == "ps 2 is down. Training goes on. Another death would lose data."
    shown("document.querySelector('.story[data-ended=open]')?.innerText.includes('waits for a server')")
    story = browser.evaluate("document.querySelector('.story').innerText")
    assert all(words in story for words in ("last heard", "declared down", "its connection is closed", "+"))
    photograph(browser, "2-down", tmp_path)

    cluster.shard("--spare")
    cluster.shard("--spare")
    shown("document.querySelector('.story')?.dataset.ended === 'whole'")
    shown("document.querySelectorAll('.tile[data-state=up]').length === 5")
    shown("document.querySelectorAll('.tile[data-state=spare]').length === 1")
    steps = browser.evaluate("[...document.querySelectorAll('.story .steps > li')].map((each) => each.dataset.step)")
    assert steps == ["heard", "noticed", "settled", "replaced", "rows", "whole"]
    times = browser.evaluate("state.doc.deaths[0].steps.map((each) => each.at)")
    assert times == sorted(times) and abs(time.time() - times[-1]) < 2 * DEADLINE_S
    photograph(browser, "3-whole-again", tmp_path)

    before = browser.evaluate("state.series.at.length")
    cluster.stop_scheduler()
    shown("document.body.dataset.live === 'silent'")
    assert re.match(
        r"This page has had no answer since \d\d:\d\d:\d\d\. It keeps asking",
        browser.evaluate("document.querySelector('#silence').textContent"),
    )
    assert browser.evaluate("document.querySelectorAll('.tile[data-state=up]').length") == 5, "what it heard last"
    photograph(browser, "4-silent", tmp_path)
    cluster.push(10)

    cluster.scheduler("--http", address)
    shown("document.body.dataset.live === 'live' && document.querySelector('#silence').textContent === ''")
    shown("document.querySelectorAll('.tile[data-state=up]').length === 5")
    shown("state.doc.series.at.length >= 2")
    assert browser.evaluate("document.querySelector('.story').dataset.ended") == "whole", "its history is kept"
    assert browser.evaluate("state.series.at.length") > before, "and the lines go on"
    photograph(browser, "5-after-the-restart", tmp_path)
    cluster.check(10)


def ask(url: str) -> dict[str, Any]:
    status, text = get(f"{url}dashboard.json")
    assert status == 200, text
    document: dict[str, Any] = json.loads(text)
    return document


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_program_shows_a_cluster_that_runs_elsewhere_and_outlives_its_scheduler(cluster: Cluster) -> None:
    cluster.scheduler()
    program = subprocess.Popen(
        [sys.executable, "-m", "ecrec.cli", "dashboard", "--scheduler", cluster.endpoint, "--http", "127.0.0.1:0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url) and get(url)[0] == 200
        until(lambda: ask(url)["verdict"]["kind"] == "forming", "the cluster waits for its servers")
        cluster.all_shards()
        until(lambda: ask(url)["verdict"]["kind"] == "whole", "all are whole")
        told = ask(url)
        assert (told["version"], told["source"], len(told["shards"])) == (VERSION, cluster.endpoint, 5)
        cluster.stop_scheduler()
        until(lambda: (now := ask(url))["at"] - now["heard_at"] > 2, "the scheduler is silent")
        assert ask(url)["verdict"]["kind"] == "whole", "what was heard last"
        cluster.scheduler()
        until(lambda: (now := ask(url))["at"] - now["heard_at"] < 2, "the scheduler answers")
        program.send_signal(signal.SIGINT)
        assert program.wait(DEADLINE_S) == 130
    finally:
        program.kill()
        program.communicate()


def test_a_run_shows_its_loss_auc_and_death_on_the_page(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    program = subprocess.Popen(
        [sys.executable, "-m", "ecrec.cli", "train", *SMALL, "--steps", "400", "--kill", "ps:1@30", "--http",
         "127.0.0.1:0", "--run-dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        url = next(line.split()[-1] for line in program.stdout if line.startswith("live page at "))
        until(lambda: bool((told := ask(url)).get("deaths")) and told["deaths"][0]["ended"] == "whole", "a death")
        until(lambda: ask(url)["now"]["auc"] is not None, "worker 0 tells its AUC")
        told = ask(url)
        assert 0 < told["now"]["auc"] < 1 and 0 < told["now"]["loss"] < 2
        assert told["workers"][0]["steps"] > 0 and told["deaths"][0]["shard"] == 1
        assert told["datasets"][0]["trained"] > 0
    finally:
        program.send_signal(signal.SIGINT)
        try:
            program.communicate(timeout=DEADLINE_S)
        finally:
            program.kill()
            program.communicate()


def test_an_address_where_it_cannot_listen_ends_the_program_with_the_code_for_options(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ecrec.cli", "dashboard", "--scheduler", f"ipc://{tmp_path}/s", "--http", "nowhere"],
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert ended.returncode == 2 and "--http 'nowhere': expected HOST:PORT" in ended.stderr
