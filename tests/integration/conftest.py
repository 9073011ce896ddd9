"""Whole runs of ``ecrec train`` as a user starts them, small enough for a few seconds each."""

import json
import os
import subprocess
import sys

import psutil
import pytest

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

    def start(self, *options):
        """A run in the background: (process, run directory, report)."""
        self._count += 1
        run_dir = self._directory / str(self._count)
        report = self._directory / f"{self._count}.json"
        command = [sys.executable, "-m", "ecrec.launch.cli", "train", *options]
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


@pytest.fixture
def trainer(tmp_path):
    return Trainer(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Reports of runs in which nothing is killed, by options; each is done once."""
    trainer = Trainer(tmp_path_factory.mktemp("undisturbed"))
    known = {}

    def report(*options):
        if options not in known:
            finished = trainer.run(*SMALL, *options)
            assert finished.code == 0, finished.story
            known[options] = finished.report
        return known[options]

    return report
