"""Runs one of TorchRec's own test files with ecrec's classes in the place of TorchRec's, and prints what came of each.

    python run_own_tests.py MODULE NAME...

MODULE is as ``torchrec.modules.tests.test_embedding_modules``; the NAMEs that it uses are replaced: collections are put
on a cluster in this process, tensors are ecrec's. Prints a JSON object: test -> [verdict, first line of its error].
Nothing of TorchRec is copied: a checkout of it is on the path.
"""

import importlib
import json
import sys
import unittest
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")

from in_process import InProcessCluster  # noqa: E402

import ecrec  # noqa: E402
from ecrec import training  # noqa: E402


def distributed(original: Any) -> Any:
    """TorchRec's constructor of a collection, which hands what it makes to `ecrec.distribute`."""

    def make(*given: Any, **options: Any) -> Any:
        session = InProcessCluster(3).session(code="2+1")
        return ecrec.distribute(original(*given, **options), session, sparse=training.SGD(lr=1.0))

    return make


def replacement(name: str, original: Any) -> Any:
    return distributed(original) if name.endswith("Collection") else getattr(training, name)


class Verdicts(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[str, str]] = {}

    def _add(self, test: Any, verdict: str, text: str = "") -> None:
        test = getattr(test, "test_case", test)  # of a subtest
        if self.found.get(test.id(), ("pass", ""))[0] == "pass":
            self.found[test.id()] = verdict, text

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        self._add(test, "pass")

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        self._add(test, "skip", reason)

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        self._add(test, "fail", f"{err[0].__name__}: {err[1]}".strip().partition("\n")[0][:300])

    addFailure = addError  # noqa: N815

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        if err is not None:
            self.addError(test, err)


def main() -> None:
    name, *replaced = sys.argv[1:]
    module = importlib.import_module(name)
    for each in replaced:
        assert hasattr(module, each), f"{name} has no {each}"
        setattr(module, each, replacement(each, getattr(module, each)))
    verdicts = Verdicts()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(verdicts)
    print("\n" + json.dumps({test.removeprefix(f"{name}."): verdict for test, verdict in verdicts.found.items()}))


if __name__ == "__main__":
    main()
