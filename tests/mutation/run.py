"""Change the protocol's and the store's lines of defence one at a time, and see whether a test notices.

    python tests/mutation/run.py [--only FILE ...] [--jobs 2] [--minutes 60] [--list] [--report]

Each mutant goes through stages until one fails: the tests of its file, then all of tests/unit/protocol (of the store:
its tests), then schedules of the simulator. It is *caught* when a stage fails, ends without a verdict, or needs far
more processor time than without the change. What passes all stages *survives*, and must be killed by a new test or
explained in `survivors.toml`.

The tree is copied first, so that it may be changed meanwhile. A mutant of Python is never written: a process that has
imported what does not change is forked for each, and imports the changed module from memory. A mutant of C++ is written
into a copy, built, and run by a process of its own. Verdicts are appended to ``build/mutation.jsonl``; a mutant has the
same key while the function it is in is the same, so a second run does only what is new.
"""

import argparse
import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "mutation.jsonl"
SURVIVORS = Path(__file__).with_name("survivors.toml")
FILES = [
    *(f"ecrec/protocol/{name}.py" for name in (
        "stream", "loss", "placement", "arrays", "seeding", "wire", "membership", "peer", "repair", "scrub", "leases",
        "client", "shard", "shard_context", "queues", "windows", "peer_windows", "scheduler", "suspicion", "adoption",
        "runs", "barriers", "initial", "new_tables", "state",
        "offenders", "node_core", "wanted",
    )),
    *(f"src/cpp/store/{name}" for name in (
        "key_index.hpp", "row_buffer.cpp", "window.cpp", "capture.cpp", "deltas.cpp", "parity.cpp", "recovery.cpp",
        "rows.cpp", "table.cpp", "table.hpp", "store.cpp",
    )),
    "src/cpp/base/bitmap.hpp", "src/cpp/base/divider.hpp",
]  # fmt: skip
UNIT = "tests/unit/protocol"
RELATED = {
    "stream": [f"{UNIT}/test_stream.py"],
    "wire": [f"{UNIT}/test_wire.py"],
    "scrub": [f"{UNIT}/test_scrub.py"],
    "leases": [f"{UNIT}/test_lease_scenarios.py"],
    "client": [f"{UNIT}/test_client.py", f"{UNIT}/test_refused_requests.py"],
    "arrays": [f"{UNIT}/test_arrays.py"],
    "placement": [f"{UNIT}/test_placement.py"],
    "loss": [f"{UNIT}/test_lost_rows.py"],
    "seeding": [f"{UNIT}/test_seeding.py", f"{UNIT}/test_group.py"],
    "suspicion": [f"{UNIT}/test_suspicion.py"],
    "adoption": [f"{UNIT}/test_adoption.py"],
    "barriers": [f"{UNIT}/test_barrier.py"],
    "initial": [f"{UNIT}/test_initial_values.py"],
    "new_tables": [f"{UNIT}/test_new_tables.py"],
    "wanted": [f"{UNIT}/test_wanted_rows.py"],
    "node_core": [f"{UNIT}/test_node_core.py"],
}
"""Of a module of the protocol, what fails first."""
ALSO = {"stream": ["tests/unit/transport/test_node.py", "tests/unit/transport/test_backpressure.py"]}
STORE_STAGES = [["tests/unit/store"], ["tests/property/test_store.py", "tests/property/test_store_sequences.py"]]
CPU_FACTOR, CPU_S_MIN = 4, 6
"""Processor time that a stage may take, compared with the same without a change: more is caught, as a hang."""
WALL_S_MAX = 900
"""Something that waits takes no processor time."""
SIMULATOR = "simulator"


def stages_of(path: str, seeds: int, unit: Sequence[str] = ()) -> list[list[str]]:
    """Arguments of pytest, or `SIMULATOR` and a number of seeds; the quick ones first."""
    if unit:
        return [list(unit), *([[SIMULATOR, str(seeds)]] if seeds else [])]
    if path.startswith("src/"):
        return [*STORE_STAGES, ["tests/unit/codec/test_bulk_threads.py"]]
    name = Path(path).stem
    first = [test for test in RELATED.get(name, []) if (ROOT / test).exists()]
    return [
        stage for stage in (first, [UNIT, *ALSO.get(name, [])], [SIMULATOR, str(seeds)]) if stage and stage[-1] != "0"
    ]


# ------------------------------------------------------------------ the copy
class Copy:
    """A tree of its own, with a package that has the native module."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        ignored = shutil.ignore_patterns("__pycache__", "*.so", ".hypothesis")
        for part in ("ecrec", "tests", "src", "bindings"):
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        for part in ("pyproject.toml", "CMakeLists.txt", "CMakePresets.json", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, folder / part)
        spec = importlib.util.find_spec("ecrec._native")
        assert spec is not None and spec.origin is not None
        self.module = folder / "ecrec" / Path(spec.origin).name
        shutil.copy(spec.origin, self.module)

    def use(self) -> None:
        """This process takes ecrec from here. An editable installation would answer for it before sys.path does."""
        hidden = "ScikitBuildRedirectingFinder"
        sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != hidden]
        sys.path.insert(0, str(self.root))
        os.environ["PYTHONPATH"] = str(self.root)
        for name in [name for name in sys.modules if name.partition(".")[0] == "ecrec"]:
            del sys.modules[name]


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed source."""

    def __init__(self, name: str, origin: Path, source: str) -> None:
        self.name, self.origin = name, origin
        self.code: CodeType = compile(source, str(origin), "exec")

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        return (
            importlib.util.spec_from_loader(fullname, self, origin=str(self.origin)) if fullname == self.name else None
        )

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.origin)
        exec(self.code, module.__dict__)


# ------------------------------------------------------------------ stages
def run_stage(stage: Sequence[str], root: Path) -> int:
    """0 if nothing failed; in the process that has the changed module."""
    if stage[0] == SIMULATOR:
        from ecrec.simulator.run import run_seed

        return next((outcome.code for seed in range(int(stage[1])) if (outcome := run_seed(seed)).code), 0)
    import pytest

    quiet = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark"]
    quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins, which are imported before the fork
    return int(pytest.main([*quiet, f"--rootdir={root}", *(str(root / each) for each in stage)]))


def in_child(stage: Sequence[str], copy: Copy, mutant: Mutant | None, cpu_s: float | None) -> tuple[str, float, str]:
    """(verdict, processor seconds, last words) of a stage in a forked child, with a mutant of Python in place."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.setsid()
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                if cpu_s is not None:
                    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s) + 1))
                if mutant is not None:
                    name = mutant.path.removesuffix(".py").replace("/", ".")
                    sys.meta_path.insert(0, Changed(name, copy.root / mutant.path, mutant.write()))
                code = run_stage(stage, copy.root)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        end = time.monotonic() + WALL_S_MAX
        while True:
            pid, status, used = os.wait4(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.05)  # a wait with a deadline for a process, which has no other way to be waited for
        said.seek(0)
        words = said.read().decode(errors="replace")
        seconds = used.ru_utime + used.ru_stime
        if os.WIFSIGNALED(status):
            return "hang" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "crash", seconds, words
        return ("passed" if os.WEXITSTATUS(status) == 0 else "failed"), seconds, words


def in_process(stage: Sequence[str], copy: Copy, cpu_s: float | None) -> tuple[str, float, str]:
    """The same for a native module that was just built: nothing that was imported before can stay."""
    command = [sys.executable, __file__, "--stage", str(copy.root), *stage]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    limit = (lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_s), int(cpu_s) + 1))) if cpu_s else None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=WALL_S_MAX, preexec_fn=limit
        )
    except subprocess.TimeoutExpired:
        return "hang", WALL_S_MAX, ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    if done.returncode < 0:
        return "hang" if -done.returncode in (signal.SIGXCPU, signal.SIGKILL) else "crash", seconds, done.stdout
    return ("passed" if done.returncode == 0 else "failed"), seconds, done.stdout


def build(copy: Copy) -> bool:
    """Build the copy's native module; False if it does not compile, which is no mutant."""
    folder = copy.root / "build"
    arguments = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1", f"-DPython_EXECUTABLE={sys.executable}"]
    if not (folder / "CMakeCache.txt").exists():
        subprocess.run(
            ["cmake", "-G", "Ninja", "-S", copy.root, "-B", folder, *arguments], check=True, capture_output=True
        )
    done = subprocess.run(["cmake", "--build", folder, "-j1"], check=False, capture_output=True)
    if done.returncode == 0:
        shutil.copy(next(folder.glob("_native*.so")), copy.module)
    return done.returncode == 0


# ------------------------------------------------------------------ a run
class Runner:
    """One copy, and what each stage takes in it without a change."""

    def __init__(self, copy: Copy, seeds: int, unit: Sequence[str]) -> None:
        self.copy, self.seeds, self.unit = copy, seeds, unit
        self.takes_s: dict[tuple[str, ...], float] = {}

    def _run(self, stage: Sequence[str], mutant: Mutant | None, native: bool) -> tuple[str, float, str]:
        usual = self.takes_s.get(tuple(stage))
        limit = None if usual is None else max(CPU_S_MIN, CPU_FACTOR * usual)
        return in_process(stage, self.copy, limit) if native else in_child(stage, self.copy, mutant, limit)

    def judge(self, mutant: Mutant) -> dict[str, Any]:
        native = not mutant.path.endswith(".py")
        stages = stages_of(mutant.path, self.seeds, self.unit)
        for stage in stages:
            if tuple(stage) not in self.takes_s:
                if native and not build(self.copy):
                    raise SystemExit("the store does not build without a change")
                verdict, seconds, words = self._run(stage, None, native)
                if verdict != "passed":
                    raise SystemExit(f"{' '.join(stage)} does not pass without a change: {verdict}\n{words[-3000:]}")
                self.takes_s[tuple(stage)] = seconds
        target = self.copy.root / mutant.path
        before = target.read_text()
        try:
            if native:
                target.write_text(mutant.write())
                if not build(self.copy):
                    return self._result(mutant, "no mutant", "it does not compile", "")
            for stage in stages:
                verdict, _, words = self._run(stage, mutant, native)
                if verdict != "passed":
                    return self._result(mutant, verdict, " ".join(stage), _failure(words))
        finally:
            if native:
                target.write_text(before)
        return self._result(mutant, "survived", " ".join(stages[-1]), "")

    def _result(self, mutant: Mutant, verdict: str, stage: str, by: str) -> dict[str, Any]:
        return {
            "key": mutant.key,
            "name": mutant.name,
            "line": mutant.line,
            "verdict": verdict,
            "stage": stage,
            "by": by,
        }


def _failure(words: str) -> str:
    lines = [line for line in words.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[-1][:200] if lines else ""


def verdicts(path: Path) -> dict[str, dict[str, Any]]:
    """By key; the last one counts."""
    if not path.exists():
        return {}
    return {found["key"]: found for found in map(json.loads, path.read_text().splitlines())}


def warm_up() -> None:
    """Import what no mutant changes."""
    for name in ("numpy", "msgspec", "zmq", "pytest", "hypothesis.stateful", "hypothesis.strategies", "ecrec.store"):
        importlib.import_module(name)


def work(mine: Sequence[Mutant], results: Path, seeds: int, unit: Sequence[str], end: float) -> None:
    """Judge mutants one after the other, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="ecrec-mutation-") as folder:
        copy = Copy(Path(folder))
        copy.use()
        warm_up()
        runner = Runner(copy, seeds, unit)
        for mutant in mine:
            if time.monotonic() > end:
                return
            found = runner.judge(mutant)
            with results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{found['verdict']:<10}{found['name']}", flush=True)


def reasons() -> dict[str, str]:
    """Why a survivor does no harm, by name."""
    import tomllib  # since Python 3.11, which only this needs

    return {each["name"]: each["reason"] for each in tomllib.loads(SURVIVORS.read_text()).get("survivor", [])}


def report(all_: Sequence[Mutant], found: dict[str, dict[str, Any]]) -> int:
    """Markdown of the survivors; returns how many nobody has explained."""
    counted = Counter(found[each.key]["verdict"] if each.key in found else "not run" for each in all_)
    print("# Mutants\n")
    print(f"{len(all_)} mutants: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counted.items())))
    explained = reasons()
    left = 0
    print("\n| survivor | line | reason |\n|---|---|---|")
    for each in all_:
        if each.key in found and found[each.key]["verdict"] == "survived":
            reason = explained.get(each.name)
            left += reason is None
            print(f"| `{each.name.replace('|', chr(92) + '|')}` | {each.line} | {reason or '**not explained**'} |")
    return left


def split(all_: Sequence[Mutant], jobs: int) -> Iterator[list[Mutant]]:
    for job in range(jobs):
        yield list(all_[job::jobs])


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="FILE", help="these files, or FILE:FUNCTION")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no mutant after this")
    parser.add_argument("--seeds", type=int, default=300, help="of the simulator, for what the tests do not catch")
    parser.add_argument(
        "--unit", nargs="+", default=[], metavar="TEST", help="these tests instead of those of the file"
    )
    parser.add_argument("--limit", type=int, help="only the first so many that are new")
    parser.add_argument("--again", choices=["survived"], help="judge these again, for example after a new test")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="print the mutants and what became of them")
    parser.add_argument(
        "--report", action="store_true", help="print the survivors; exit code 1 if one is not explained"
    )
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
        sys.path.insert(0, args.stage[0])
        return run_stage(args.stage[1:], Path(args.stage[0]))
    wanted = dict((*each.split(":"), "")[:2] for each in args.only or FILES)
    all_ = [m for path, name in wanted.items() for m in mutants(path, (ROOT / path).read_text()) if name in m.where]
    found = verdicts(args.results)
    if args.list:
        for each in all_:
            print(f"{found.get(each.key, {}).get('verdict', 'not run'):<10}{each.key}  {each.line:>4}  {each.name}")
        return 0
    if args.report:
        return 1 if report(all_, found) else 0
    todo = [m for m in all_ if m.key not in found or found[m.key]["verdict"] == args.again][: args.limit]
    print(f"{len(todo)} of {len(all_)} mutants to judge")
    args.results.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    if args.jobs == 1:
        work(todo, args.results, args.seeds, args.unit, end)
        return 0
    sys.stdout.flush()
    jobs = [_begin(part, args.results, args.seeds, args.unit, end) for part in split(todo, args.jobs)]
    return max([os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]) for job in jobs], default=0)


def _begin(mine: Sequence[Mutant], results: Path, seeds: int, unit: Sequence[str], end: float) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(mine, results, seeds, unit, end)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


if __name__ == "__main__":
    sys.exit(main())
