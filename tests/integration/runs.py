"""Whole runs of ``ecrec train`` as a user starts them, small enough for a few seconds each."""

import json
import os
import selectors
import subprocess
import sys
import time

import psutil

SMALL = (
    *("--rows", "2000", "--steps", "30", "--batch", "256", "--dim", "16"),
    *("--top-mlp", "32", "--bottom-mlp", "32", "--seed", "11"),
)
"""Enough steps for three deaths; tables small enough that nothing but the deaths takes time."""


class Finished:
    """How a run ended."""

    def __init__(self, code, out, err, report, run_dir):
        self.code = code
        self.out = out
        self.err = err
        self.report = report
        self.run_dir = run_dir

    def logs(self):
        texts = []
        for log in sorted((self.run_dir / "logs").glob("*.log")):
            texts.append(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        return "\n".join(texts)

    @property
    def story(self):
        """All there is to say when a test fails."""
        return f"exit code {self.code}\n{self.out}\n{self.err}\n{self.logs()}"


class Trainer:
    """Starts runs, each in a directory of its own, and sees to it that nothing of them is left."""

    def __init__(self, directory):
        self._directory = directory
        self._count = 0

    def start(self, *options, run_dir=None):
        """A run in the background: (process, run directory, report)."""
        self._count += 1
        run_dir = run_dir or self._directory / str(self._count)
        report = self._directory / f"{self._count}.json"
        command = [sys.executable, "-m", "ecrec.cli", "train", *options]
        process = subprocess.Popen(
            [*command, "--run-dir", str(run_dir), "--report", str(report)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
        )  # fmt: skip
        return process, run_dir, report

    def finish(self, process, run_dir, report, timeout_s=120):
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
            process.wait()
        text = report.read_text() if report.exists() else "null"
        finished = Finished(process.returncode, out, err, json.loads(text), run_dir)
        assert left_over(run_dir) == [], finished.story
        return finished

    def run(self, *options, timeout_s=120):
        return self.finish(*self.start(*options), timeout_s=timeout_s)


def left_over(run_dir):
    """Processes of a run that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(str(run_dir) in a for a in process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def cluster(run_dir):
    """What a run says of its processes: endpoints and process ids."""
    return json.loads((run_dir / "cluster.json").read_text())


def words(process, wanted, timeout_s=60):
    """Read the run's output until a line has these words; returns what was read."""
    deadline = time.monotonic() + timeout_s
    read = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while wanted.encode() not in read:
            assert selector.select(deadline - time.monotonic()), f"no {wanted!r} in {read.decode()}"
            data = os.read(process.stdout.fileno(), 1 << 16)
            assert data, f"ended without {wanted!r}: {read.decode()} {process.stderr.read()}"
            read += data
    return read.decode()


def wait_until(condition, timeout_s=30):
    """Poll something that tells nobody when it changes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_exact(finished, reference):
    """The run ended well, did what was asked, lost nothing and has the reference's model, byte for byte. The report."""
    assert finished.code == 0, finished.story
    report = finished.report
    assert report["kills_not_done"] == [], finished.story
    assert report["lost_updates"] == 0, finished.story
    assert report["updates_acknowledged"] > 0, finished.story
    assert report["parity_ok"] is True, finished.story
    assert report["stripes_scrubbed"] > 1000, finished.story
    assert report["model_digest"] == reference["model_digest"], finished.story
    assert report["auc"] == reference["auc"], finished.story
    assert all(kill["whole_s"] is not None for kill in report["kills"]), finished.story
    return report
