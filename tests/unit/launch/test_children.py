import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ecrec.errors import ClusterError
from ecrec.launch.local.children import Children, Ended, Line
from ecrec.tether import module_command


@pytest.fixture
def children():
    with_them = Children()
    yield with_them
    with_them.close()


def collect(children, until, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    seen = []
    while not until(seen):
        assert time.monotonic() < deadline, f"only {seen}"
        seen.extend(children.wait(deadline - time.monotonic()))
    return seen


def python(text):
    return [sys.executable, "-c", text]


def ended(seen):
    return any(isinstance(event, Ended) for event in seen)


def test_lines_come_before_the_end_and_other_output_goes_to_the_log(children, tmp_path):
    program = "import sys; print('{\"a\": 1}'); print('plain'); print('[2]'); sys.stderr.write('oops'); sys.exit(3)"
    child = children.start("it", python(program), tmp_path / "it.log", os.environ)
    seen = collect(children, ended)
    assert seen == [Line(child, {"a": 1}), Ended(child, 3)]
    assert set(child.log.read_text().replace("oops", "oops\n").split()) == {"plain", "[2]", "oops"}
    assert children.running == []
    assert "it ended with exit code 3" in child.describe_end()
    assert str(child.log) in child.describe_end()


def test_a_worker_writes_its_events_to_a_pipe_of_its_own(children, tmp_path):
    program = "import os; print('hello'); os.write(int(os.environ['ECREC_EVENTS_FD']), b'{\"event\": \"done\"}\\n')"
    child = children.start("w", python(program), tmp_path / "w.log", os.environ, events=True)
    assert collect(children, ended) == [Line(child, {"event": "done"}), Ended(child, 0)]
    assert child.log.read_text() == "hello\n"


def test_a_line_in_two_parts_is_one_line(children, tmp_path):
    program = "import os, sys; os.write(1, b'{\"a\":'); sys.stdin.read(); os.write(1, b' 5}\\n')"
    child = children.start("it", python(program), tmp_path / "it.log", os.environ)
    assert collect(children, ended)[0] == Line(child, {"a": 5})


def test_a_killed_child_is_noticed_and_described(children, tmp_path):
    child = children.start("it", python("import signal; signal.pause()"), tmp_path / "it.log", os.environ)
    before = time.monotonic()
    assert before <= children.kill(child) <= time.monotonic()
    assert collect(children, ended) == [Ended(child, -signal.SIGKILL)]
    assert "was ended by SIGKILL" in child.describe_end()


def test_nothing_survives_a_stop_not_even_what_ignores_sigterm(children, tmp_path):
    deaf = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "p = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
        "print('{\"pid\": %d}' % p.pid, flush=True); signal.pause()"
    )
    child = children.start("it", python(deaf), tmp_path / "it.log", os.environ)
    (line,) = collect(children, lambda seen: seen)
    grandchild = psutil.Process(line.data["pid"])
    children.stop(grace_s=0.1)
    assert child.process.returncode == -signal.SIGKILL
    psutil.wait_procs([grandchild], timeout=5)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_a_child_is_ended_by_the_signal_that_it_was_started_with(children, tmp_path):
    waits = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(7)); print('{}', flush=True); signal.pause()"
    )
    child = children.start("it", python(waits), tmp_path / "it.log", os.environ, end_signal=signal.SIGINT)
    collect(children, lambda seen: seen)
    children.stop(grace_s=20.0)
    assert child.process.returncode == 7


def test_wait_ends_at_its_timeout_and_when_woken(children):
    assert children.wait(0.0) == []
    children.wake()
    begin = time.monotonic()
    assert children.wait(30.0) == []
    assert time.monotonic() - begin < 10


def test_a_program_that_does_not_exist_is_an_error(children, tmp_path):
    with pytest.raises(ClusterError, match="cannot start it"):
        children.start("it", ["/nonexistent/program"], tmp_path / "it.log", os.environ)


def test_children_die_with_the_process_that_started_them(tmp_path, fakes):
    program = (
        "import os, pathlib; from ecrec.launch.local.children import Children; from ecrec.tether import module_command;"
        "c = Children();"
        "x = c.start('it', module_command('fake_server', '--bind', 'tcp://a:0'),"
        f" pathlib.Path({str(tmp_path / 'log')!r}), os.environ);"
        "c.wait(20); print(x.pid, flush=True); c.wait(60)"
    )
    with subprocess.Popen(python(program), stdout=subprocess.PIPE) as launcher:
        child = psutil.Process(int(launcher.stdout.readline()))
        launcher.kill()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_whose_parent_is_already_gone_does_not_start():
    command = module_command("fake_server")
    command[2] = "1"
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert result.returncode == 1
    assert "parent process 1 is gone" in result.stderr
