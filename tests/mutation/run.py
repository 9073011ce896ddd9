"""Weaken the lines of defence of the protocol and the store one at a time, and see whether a test notices.

    python tests/mutation/run.py [--only FILE ...] [--jobs 2] [--minutes 60] [--all] [--list] [--report] [--save]

Each test of `TESTS`, and each of so many seeds of the simulator, runs once without a change and is noted with what it
reaches: statements of Python, switches of C++. A mutant is then judged by those alone that reach it: those first that
caught others of its function or file, then the quick ones, until one fails or `--seconds` are used up. It is *caught*
when one fails, crashes, or needs far more processor time than without the change. What nothing notices *survives*, and
what nothing reaches is *not reached*: each must be caught by a new test, or explained in `survivors.toml`.

The tree is copied first, so that it may be changed meanwhile. Nothing is imported or built for each mutant: a
process that has collected all tests is forked, and puts the changed code into the functions that it has; of C++ all
mutants are built into one module, and one is switched on.

Verdicts are appended to ``build/mutation.jsonl`` (``--results``), with the test that noticed; ``--save`` writes them
to `verdicts.txt`. Two runs at a time may share that file: neither judges again what the other has judged meanwhile. A
mutant has the same key while the function it is in is the same, so that a run does only what is new. What each test
reaches is kept beside them, in ``build/mutation.reached``, and is noted again when the protocol, the store, the
simulator or the test's file has changed.

This file is long because it is one program: what is forked, what it puts into itself, and who judges it go together.
"""

import argparse
import ast
import ctypes
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import pickle
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest
import tomllib

sys.path.insert(0, str(Path(__file__).parent))

from mutants import Constant, Mutant, cpp_switched, marked, mutants

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "mutation.jsonl"
BUILD = ROOT / "build" / "mutants"
"""Of C++, from which a next run goes on."""
HERE = Path(__file__).parent
SURVIVORS, VERDICTS = HERE / "survivors.toml", HERE / "verdicts.txt"

FOLDERS = ("ecrec/protocol", "src/cpp/store", "src/cpp/base")
EXCLUDED = {
    "ecrec/protocol/invariants.py": "What tests and the simulator check after each event; nothing shipped runs it.",
}
FIRST = (
    "windows", "peer_windows", "shard", "pushes", "pulls", "shard_context", "membership", "seeding", "repair",
    "captures", "scheduler", "deaths", "settlement", "suspicion", "admission", "adoption", "leases", "runs", "barriers",
    "initial", "new_tables", "client", "stream",
)  # fmt: skip
"""Judged before others."""
PROTOCOL = ["tests/unit/protocol"]
TESTS = {
    ".py": [*PROTOCOL, *(f"tests/unit/transport/test_{name}.py" for name in ("node", "node_busy", "backpressure"))],
    ".cpp": [
        "tests/unit/store", "tests/property/test_store.py", "tests/property/test_store_sequences.py",
        "tests/unit/codec/test_bulk_threads.py", *PROTOCOL,
    ],
}  # fmt: skip
"""By language. What a test reaches decides whether it is run."""
LEFT_OUT = {
    "tests/unit/protocol/test_census.py::test_whatever_some_members_tell_the_state_can_be_or_is_refused_with_a_reason":
        "Hundreds of random states: 38 s, and gigabytes.",
}  # fmt: skip
NO_PLUGINS = ("terminal", "cacheprovider", "xdist", "benchmark", "faulthandler")
CPU_FACTOR, CPU_S_MIN = 5, 2
"""Processor time that a test may take, compared with the same without a change: more is caught, as a hang."""
WALL_S_MAX = 60
"""Something that waits takes no processor time."""
MEMORY_BYTES_MAX = 4 << 30
SEEDS_SHARE = 4
"""Seeds are run for a fourth of the time of the tests, since they notice less,"""
SEEDS_EACH = 25
"""and at most so many of them."""
CAUGHT, SURVIVED, NOT_REACHED = "caught", "survived", "not reached"
LETTERS = {CAUGHT: "c", SURVIVED: "s", NOT_REACHED: "n"}


def files() -> list[str]:
    """All that is changed, the most critical first."""
    found = sorted(
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".hpp") and str(path.relative_to(ROOT)) not in EXCLUDED
    )
    places = {name: place for place, name in enumerate(FIRST)}
    return sorted(found, key=lambda path: (not path.endswith(".py"), places.get(Path(path).stem, len(places)), path))


PYTHON = [path for path in files() if path.endswith(".py")]


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
        sys.path[:0] = [str(self.root), str(self.root / "tests" / "simulator")]
        os.environ["PYTHONPATH"] = str(self.root)
        for name in [name for name in sys.modules if name.partition(".")[0] == "ecrec"]:
            del sys.modules[name]

    def build(self, all_: Sequence[Mutant], jobs: int) -> None:
        """The native module with a switch for each of these mutants, numbered in order."""
        switches = {mutant.key: number for number, mutant in enumerate(all_)}
        changed = {mutant.path for mutant in all_}
        own = '#define ECREC_SHOWN __attribute__((visibility("default")))\nextern "C" {\n'
        own += f"ECREC_SHOWN int ecrec_mutant = -1;\nECREC_SHOWN unsigned char ecrec_reached[{len(all_)}];\n}}\n"
        wanted = {"src/cpp/base/mutation_switch.cpp": own}
        for part in ("src", "bindings", "tests/mutation"):
            for found in (self.root / part).rglob("*.*"):
                path = str(found.relative_to(self.root))
                if found.suffix in (".cpp", ".hpp", ".inl"):
                    text = found.read_text()
                    wanted[path] = cpp_switched(path, text, switches) if path in changed else text
        for path in ("CMakeLists.txt", "pyproject.toml"):
            wanted[path] = (self.root / path).read_text()
        for found in (BUILD / "src").rglob("*.*"):
            if str(found.relative_to(BUILD)) not in wanted:
                found.unlink()
        for path, text in wanted.items():
            target = BUILD / path
            if not target.exists() or target.read_text() != text:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        flags = f"-O1 -DNDEBUG -w -include {BUILD}/tests/mutation/switch.hpp"
        arguments = ["-DCMAKE_BUILD_TYPE=Mutants", f"-DCMAKE_CXX_FLAGS={flags}"]
        arguments += [f"-DPython_EXECUTABLE={sys.executable}"]
        for command in (
            ["cmake", "-G", "Ninja", "-S", BUILD, "-B", BUILD / "build", *arguments],
            ["cmake", "--build", BUILD / "build", f"-j{jobs}"],
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"the mutants of C++ do not build:\n{done.stdout[-6000:]}{done.stderr[-3000:]}")
        shutil.copy(next((BUILD / "build").glob("_native*.so")), self.module)


# ------------------------------------------------------------------ changed code
class Python:
    """Changed code is put into the functions that are there."""

    def __init__(self, copy: Copy) -> None:
        self._root = copy.root
        self._numbers: dict[str, dict[tuple[int, int], int]] = {}
        self._marked: dict[str, ast.Module] = {}
        self.size = 0
        for path in PYTHON:
            self._marked[path], numbers = marked((copy.root / path).read_text(), self.size)
            self._numbers[path] = numbers
            self.size += len(numbers)
        self._functions: dict[tuple[str, str, int], list[FunctionType]] = {}

    def prepare(self) -> None:
        """When all is imported: note all functions."""
        wanted = {str(self._root / path) for path in self._marked}
        for each in gc.get_objects():
            if isinstance(each, FunctionType) and each.__code__.co_filename in wanted:
                code = each.__code__
                found = self._functions.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), [])
                found.append(each)

    def numbers(self, mutant: Mutant) -> tuple[int, int]:
        return self._numbers[mutant.path][mutant.statement], self._numbers[mutant.path][mutant.likely]

    def record(self) -> bytearray:
        reached = bytearray(self.size)
        for path, tree in self._marked.items():
            for function in self._put(path, tree):
                function.__globals__["__reached__"] = reached
        return reached

    def apply(self, mutant: Mutant) -> None:
        if mutant.constant is not None:
            self._put_constant(mutant.path, mutant.constant)
        elif not self._put(mutant.path, mutant.write(), mutant.where):
            raise LookupError(f"there is no function {mutant.where} of {mutant.path}")

    def _put_constant(self, path: str, constant: Constant) -> None:
        """In its module, and in all that have imported it."""
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        old = vars(sys.modules[module])[constant.name]
        new = constant.changed(old)
        for each in list(sys.modules.values()):
            for name, value in list(vars(each).items()) if each is not None else ():
                if value is old:
                    setattr(each, name, new)

    def _put(self, path: str, tree: ast.Module, name: str | None = None) -> list[FunctionType]:
        """Into all functions of a file, or those of one name."""
        changed = []
        todo = [compile(tree, str(self._root / path), "exec")]
        while todo:
            code = todo.pop()
            todo += [each for each in code.co_consts if isinstance(each, CodeType)]
            if name is None or code.co_qualname == name:
                for each in self._functions.get((code.co_filename, code.co_qualname, code.co_firstlineno), []):
                    each.__code__ = fitting(code, each)
                    changed.append(each)
        return changed


def fitting(code: CodeType, function: FunctionType) -> CodeType:
    """Changed code that can be put into a function: without the only `super()` of a method it would lack its class."""
    around = function.__code__.co_freevars
    return code if code.co_freevars or not around else code.replace(co_freevars=around)


class Native:
    """A mutant is switched on."""

    def __init__(self, copy: Copy, all_: Sequence[Mutant]) -> None:
        self._module = copy.module
        self._numbers = {mutant.key: number for number, mutant in enumerate(all_)}

    def prepare(self) -> None:
        self._library = ctypes.CDLL(str(self._module))

    def numbers(self, mutant: Mutant) -> tuple[int, int]:
        return self._numbers[mutant.key], self._numbers[mutant.key]

    def record(self) -> Any:
        return (ctypes.c_ubyte * len(self._numbers)).in_dll(self._library, "ecrec_reached")

    def apply(self, mutant: Mutant) -> None:
        ctypes.c_int.in_dll(self._library, "ecrec_mutant").value = self._numbers[mutant.key]


# ------------------------------------------------------------------ a run
class Case(NamedTuple):
    """A test or a seed of the simulator, and what was found of it without a change."""

    name: str
    seconds: float
    passed: bool
    reached: bytes


SEED = "seed"


def is_seed(name: str) -> bool:
    return name.startswith(f"{SEED} ")


class Run:
    """A plugin of pytest, which judges mutants instead of running the tests."""

    def __init__(self, root: Path, code: Python | Native, todo: Sequence[Mutant], options: argparse.Namespace) -> None:
        self.root, self.code, self.todo, self.options = root, code, todo, options
        self.end = time.monotonic() + 60 * options.minutes
        self._failed = False
        self._judged: set[str] = set()
        """Mutants that other runs have judged since this one began,"""
        self._read_bytes = options.results.stat().st_size if options.results.exists() else 0
        """as far as the results were read."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """A failing example is enough; it need not be the smallest."""
        from hypothesis import Phase, settings

        settings.register_profile("mutation", settings.default, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed = self._failed or report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Failed("tests cannot be collected")
        from simulation import run

        self._run_seed, self._items = run.run_seed, {item.nodeid: item for item in session.items}
        for path in PYTHON:
            importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        self.code.prepare()
        jobs = self.options.jobs
        names = [*self._items, *(f"{SEED} {seed}" for seed in range(self.options.seeds))]
        kept = self._kept()
        todo = [name for name in names if name not in kept]
        began = time.monotonic()
        for part in _forked(self._record, [todo[job::jobs] for job in range(jobs)]):
            kept |= {case.name: case for case in part}
        self.cases = [kept[name] for name in names]
        for case in self.cases:
            if not case.passed:
                print(f"fails without a change, and is left out: {case.name}", flush=True)
        print(f"{len(todo)} of {len(names)} tests and seeds noted in {time.monotonic() - began:.0f} s", flush=True)
        _forked(self._judge_all, [self.todo[job::jobs] for job in range(jobs)])
        return True

    def _passes(self, name: str, following: str | None) -> bool:
        if is_seed(name):
            return not self._run_seed(int(name.split()[1])).code
        item = self._items[name]
        self._failed = False
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=self._items.get(following or ""))
        return not self._failed

    # ------------------------------------------------------------------ what is reached
    @cache  # noqa: B019
    def _key(self, path: Path | None) -> str:
        """Of all that decides what a test or (without a path) a seed reaches."""
        folders = [self.root / "ecrec" / "protocol", self.root / "ecrec" / "store", self.root / "tests" / "simulator"]
        common = [each for folder in folders for each in folder.rglob("*.py")]
        if isinstance(self.code, Native):
            common += [each for part in ("src", "bindings") for each in (BUILD / part).rglob("*.*")]
        if path is not None:
            text = path.read_text()
            common += [path, *(each for each in path.parent.glob("*.py") if f"from {each.stem} import" in text)]
        kind = type(self.code).__name__.encode()
        return hashlib.sha256(kind + b"".join(each.read_bytes() for each in sorted(common))).hexdigest()

    def _key_of(self, name: str) -> str:
        return self._key(None if is_seed(name) else self._items[name].path)

    def _kept(self) -> dict[str, Case]:
        kept: dict[str, Case] = {}
        reached = self.options.results.with_suffix(".reached")
        if reached.exists():
            with reached.open("rb") as file, suppress(EOFError):
                while True:
                    key, fields = pickle.load(file)
                    case = Case(*fields)
                    if (is_seed(case.name) or case.name in self._items) and key == self._key_of(case.name):
                        kept[case.name] = case
        return kept

    def _record(self, mine: Sequence[str]) -> list[Case]:
        reached = self.code.record()
        found = []
        for place, name in enumerate(mine):
            ctypes.memset((ctypes.c_char * len(reached)).from_buffer(reached), 0, len(reached))
            before = time.process_time()
            passed = self._passes(name, mine[place + 1] if place + 1 < len(mine) else None)
            case = Case(name, time.process_time() - before, passed, bytes(reached))
            found.append(case)
            with self.options.results.with_suffix(".reached").open("ab") as file:
                file.write(pickle.dumps((self._key_of(name), tuple(case))))
        return found

    # ------------------------------------------------------------------ mutants
    def _judge_all(self, mine: Sequence[Mutant]) -> None:
        self._caught: Counter[tuple[str, str]] = Counter()
        gc.freeze()  # what is there is not written to by collections of each child
        for mutant in mine:
            if time.monotonic() > self.end:
                return
            if self._is_judged(mutant):
                continue  # another run, maybe with newer tests: its verdict must not be undone
            found = self._judge(mutant)
            if self.options.again and self.options.unit and found["verdict"] != CAUGHT:
                continue  # those tests alone do not notice: what is known of all tests stays
            with self.options.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{found['verdict']:<12}{found['seconds']:6.1f}  {found['name']}", flush=True)

    def _is_judged(self, mutant: Mutant) -> bool:
        """Whether there is a verdict that was not there when this run began."""
        if self.options.results.exists():
            with self.options.results.open("rb") as file:
                file.seek(self._read_bytes)
                lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            self._read_bytes += sum(map(len, whole))
            self._judged |= {json.loads(line)["key"] for line in whole}
        return mutant.key in self._judged

    def _chosen(self, mutant: Mutant) -> list[Case]:
        """Those that reach it, in the order in which they run."""
        (number, likely), stem = self.code.numbers(mutant), Path(mutant.path).stem
        reaching = sorted(
            (case for case in self.cases if case.passed and case.reached[number]), key=lambda case: case.seconds
        )

        again: dict[str, int] = {}
        """The how manieth of the cases of a test: many of them reach the same."""
        counted: Counter[str] = Counter()
        for case in reaching:
            test = case.name.partition("[")[0]
            again[case.name], counted[test] = counted[test], counted[test] + 1

        def rank(case: Case) -> tuple[float, ...]:
            own = self._caught[f"{mutant.path} {mutant.where}", case.name]
            others = self._caught[mutant.path, case.name]
            return (
                not case.reached[likely],
                -own,
                -others,
                again[case.name],
                f"test_{stem}" not in case.name,
                case.seconds,
            )

        chosen: list[Case] = []
        for seeds in (False, True):
            left = self.options.seconds / (SEEDS_SHARE if seeds else 1)
            some = sorted((case for case in reaching if is_seed(case.name) == seeds), key=rank)
            for case in some[: SEEDS_EACH if seeds else None]:
                if case.seconds <= left or not chosen:
                    left -= case.seconds
                    chosen.append(case)
        return sorted(chosen, key=lambda case: rank(case)[:3])

    def _judge(self, mutant: Mutant) -> dict[str, Any]:
        began = time.monotonic()
        chosen = self._chosen(mutant)
        verdict, by = NOT_REACHED, ""
        if chosen:
            verdict, by, case = self._try(mutant, chosen)
            if case is not None:
                self._caught[f"{mutant.path} {mutant.where}", case.name] += 1
                self._caught[mutant.path, case.name] += 1
        return {
            "key": mutant.key,
            "name": mutant.name,
            "line": mutant.line,
            "verdict": verdict,
            "by": by,
            "tried": len(chosen),
            "seconds": round(time.monotonic() - began, 2),
        }

    def _try(self, mutant: Mutant, chosen: Sequence[Case]) -> tuple[str, str, Case | None]:
        """(verdict, who noticed and how)."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.setsid()
                quiet = os.open(os.devnull, os.O_WRONLY)
                os.dup2(quiet, 1)
                os.dup2(quiet, 2)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                self.code.apply(mutant)
                code = 0
                for place, case in enumerate(chosen):
                    os.write(write, f"{place}\n".encode())
                    used = resource.getrusage(resource.RUSAGE_SELF)
                    limit = used.ru_utime + used.ru_stime + max(CPU_S_MIN, CPU_FACTOR * case.seconds) + 1
                    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), resource.RLIM_INFINITY))
                    if not self._passes(case.name, chosen[place + 1].name if place + 1 < len(chosen) else None):
                        code = 1
                        break
            except BaseException:
                code = code or 1
            finally:
                os._exit(code)
        os.close(write)
        status = _waited(child, WALL_S_MAX + 3 * sum(case.seconds for case in chosen))
        with os.fdopen(read, "rb") as file:
            places = file.read().split()
        if status == 99 << 8 or not places:
            raise SystemExit(f"{mutant.name}: the changed code cannot be put into place")
        if status == 0:
            return SURVIVED, "", None
        case = chosen[int(places[-1])]
        how = "fails"
        if os.WIFSIGNALED(status):
            how = "hangs" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "crashes"
        return CAUGHT, f"{case.name} {how}", case


def _waited(child: int, wall_s: float) -> int:
    """The status of a process, which is ended when it takes too long or too much memory."""
    watched = os.pidfd_open(child)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    end = time.monotonic() + wall_s
    while not poll.poll(500):
        pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
        if time.monotonic() > end or pages * resource.getpagesize() > MEMORY_BYTES_MAX:
            os.kill(child, signal.SIGKILL)
    os.close(watched)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a test has started
    return status


def _forked(work: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
    """Do each part in a process of its own; their answers, in order."""
    with ExitStack() as files:
        running = []
        for part in parts:
            answer = files.enter_context(tempfile.TemporaryFile())
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    pickle.dump(work(part), answer)
                    answer.flush()
                    code = 0
                except BaseException as error:
                    print(f"{type(error).__name__}: {error}", flush=True)
                finally:
                    os._exit(code)
            running.append((child, answer))
        answers = []
        for child, answer in running:
            _, status = os.waitpid(child, 0)
            if status:
                raise SystemExit(f"a process of the run ended with {status}")
            answer.seek(0)
            answers.append(pickle.load(answer))
        return answers


def chosen(path: str, options: argparse.Namespace) -> list[Mutant]:
    """The mutants of a file that a run is about."""
    return [mutant for mutant in mutants(path, (ROOT / path).read_text()) if mutant.defence or options.all]


def work(todo: Sequence[Mutant], options: argparse.Namespace) -> None:
    """Judge mutants of one language."""
    suffix = ".py" if todo[0].path.endswith(".py") else ".cpp"
    with tempfile.TemporaryDirectory(prefix="ecrec-mutation-") as folder:
        copy = Copy(Path(folder))
        if suffix == ".cpp":
            all_ = [m for path in files() if path not in PYTHON for m in chosen(path, options)]
            copy.build(all_, options.jobs)
        copy.use()
        code = Python(copy) if suffix == ".py" else Native(copy, all_)
        quiet = ["-s", "-o", "addopts=", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        quiet += [each for name in NO_PLUGINS for each in ("-p", f"no:{name}")]
        quiet += [f"--deselect={each}" for each in LEFT_OUT]
        tests = [str(copy.root / each) for each in options.unit or TESTS[suffix]]
        ended = pytest.main([*quiet, f"--rootdir={copy.root}", *tests], plugins=[Run(copy.root, code, todo, options)])
        if ended != pytest.ExitCode.OK:
            raise SystemExit(f"pytest ends with {ended!r}")


# ------------------------------------------------------------------ what was found
def verdicts(results: Path) -> dict[str, str]:
    """By key: those that are kept, then those of runs on this machine; the last one counts."""
    letters = {letter: verdict for verdict, letter in LETTERS.items()}
    found = {}
    if VERDICTS.exists():
        lines = [line.split() for line in VERDICTS.read_text().splitlines() if not line.startswith("#")]
        found = {key: letters[letter] for letter, *keys in lines for key in keys}
    if results.exists():
        found |= {each["key"]: each["verdict"] for each in map(json.loads, results.read_text().splitlines())}
    return found


def save(all_: Sequence[Mutant], found: dict[str, str]) -> None:
    """Keep the verdicts of mutants that exist."""
    lines = ["# Written by run.py --save: keys of mutants that are c(aught), s(urvivors) or n(ot reached)."]
    for path in sorted({mutant.path for mutant in all_}):
        lines.append(f"# {path}")
        keys = sorted(mutant.key for mutant in all_ if mutant.path == path)
        for verdict, letter in LETTERS.items():
            some = [key for key in keys if found.get(key) == verdict]
            lines += [f"{letter} {' '.join(some[i : i + 6])}" for i in range(0, len(some), 6)]
    VERDICTS.write_text("\n".join(lines) + "\n")


def reasons() -> dict[str, str]:
    """Why a survivor does no harm, by name."""
    survivors = tomllib.loads(SURVIVORS.read_text()).get("survivor", [])
    return {name: each["reason"] for each in survivors for name in each["names"]}


def report(all_: Sequence[Mutant], found: dict[str, str]) -> int:
    """Markdown: what became of the mutants of each file, and the survivors; returns how many are not accounted for."""
    explained = reasons()
    left = [m for m in all_ if found.get(m.key) in (SURVIVED, NOT_REACHED) and m.name not in explained]
    print("# Mutants\n\n| file | mutants | caught | explained | survive | no verdict |\n|---|---|---|---|---|---|")
    rows = [("all", list(all_))]
    rows += [(path, [m for m in all_ if m.path == path]) for path in dict.fromkeys(m.path for m in all_)]
    for path, some in rows:
        caught = sum(found.get(m.key) == CAUGHT for m in some)
        known = sum(m.key in found for m in some)
        open_ = sum(m in left for m in some)
        print(f"| {path} | {len(some)} | {caught} | {known - caught - open_} | {open_} | {len(some) - known} |")
    print("\n| survivor | line | reason |\n|---|---|---|")
    for m in all_:
        if found.get(m.key) in (SURVIVED, NOT_REACHED):
            text = explained.get(m.name) or f"**{found[m.key]}, not explained**"
            print(f"| `{m.name.replace('|', chr(92) + '|')}` | {m.line} | {text} |")
    return len(left) + sum(m.key not in found for m in all_)


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="FILE", help="these files, or FILE:FUNCTION")
    parser.add_argument("--all", action="store_true", help="every mutant, not only those of lines of defence")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no mutant after this")
    parser.add_argument("--seconds", type=float, default=10, help="of processor time of tests for one mutant")
    parser.add_argument("--seeds", type=int, default=300, help="of the simulator, from which are chosen")
    parser.add_argument("--unit", nargs="+", default=[], metavar="TEST", help="choose from these tests alone")
    parser.add_argument("--limit", type=int, help="only the first so many that are new")
    parser.add_argument("--again", action="store_true", help="judge survivors again, for example after a new test")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="print the mutants and what became of them")
    parser.add_argument(
        "--report", action="store_true", help="print the survivors; exit code 1 if one is not explained, or not judged"
    )
    parser.add_argument("--save", action="store_true", help=f"write the verdicts to {VERDICTS.name}")
    options = parser.parse_args()
    wanted = [(*each.split(":"), "")[:2] for each in options.only or files()]
    all_ = [m for path, name in wanted for m in chosen(path, options) if name in m.where]
    found = verdicts(options.results)
    if options.list:
        for each in all_:
            print(f"{found.get(each.key, 'no verdict'):<12}{each.key}  {each.line:>4}  {each.name}")
        return 0
    if options.report or options.save:
        if options.save:
            save(all_, found)
        return 1 if options.report and report(all_, found) else 0
    again = (SURVIVED, NOT_REACHED) if options.again else ()
    todo = [m for m in all_ if m.key not in found or found[m.key] in again][: options.limit]
    print(f"{len(todo)} of {len(all_)} mutants to judge", flush=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for is_python in (True, False):
        some = [m for m in todo if m.path.endswith(".py") == is_python]
        if some:
            _forked(lambda some: work(some, options), [some])
    return 0


if __name__ == "__main__":
    sys.exit(main())
