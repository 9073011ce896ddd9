"""Runs one of TorchRec's own test files with ecrec's classes in the place of TorchRec's, and prints what came of each.

    python run_own_tests.py MODULE NAME...

MODULE is as ``torchrec.modules.tests.test_embedding_modules``; the NAMEs that it uses are replaced: collections are put
on a cluster in this process, tensors are ecrec's. Prints a JSON object: test -> [verdict, first line of its error].
Nothing of TorchRec is copied: a checkout of it is on the path.
"""

import contextlib
import importlib
import json
import sys
import unittest
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.simplefilter("ignore")

import torch  # noqa: E402
from in_process import InProcessCluster  # noqa: E402

import ecrec  # noqa: E402
from ecrec import training  # noqa: E402


def session() -> training.Session:
    return InProcessCluster(3).session(code="2+1")


def distributed(original: Any) -> Any:
    """TorchRec's constructor of a collection, which hands what it makes to `ecrec.distribute`."""

    def make(*given: Any, **options: Any) -> Any:
        return ecrec.distribute(original(*given, **options), session(), sparse=training.SGD(lr=1.0))

    return make


def optimizer(kind: Any, options: Any) -> training.Optimizer:
    """Ours for torch's or TorchRec's class of the same name."""
    made: training.Optimizer = getattr(training, kind.__name__)(**options)
    return made


class _AnyOfOurs(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, training.EmbeddingBagCollection)


class FusedEmbeddingBagCollection(torch.nn.Module, metaclass=_AnyOfOurs):
    """TorchRec's steps in the backward pass, and ecrec in `push`: what is pending is pushed when it is next used."""

    def __init__(self, tables: Any, optimizer_type: Any, optimizer_kwargs: Any, **options: Any) -> None:
        super().__init__()
        of_torchrec = importlib.import_module("torchrec.modules.embedding_modules").EmbeddingBagCollection
        fused = optimizer(optimizer_type, optimizer_kwargs)
        self._session = session()
        self._made = [ecrec.distribute(of_torchrec(tables, **options), self._session, sparse=fused)]

    def __call__(self, features: Any) -> Any:
        self._session.push()
        return self._made[0](features)

    def state_dict(self) -> Any:  # type: ignore[override]
        self._session.push()
        return self._made[0].state_dict()

    def load_state_dict(self, state: Any) -> Any:  # type: ignore[override]
        return self._made[0].load_state_dict(state)

    def fused_optimizer(self) -> Any:
        return self._session.optimizer


def fuse_embedding_optimizer(model: Any, optimizer_type: Any, optimizer_kwargs: Any, device: Any) -> Any:
    fused = optimizer(optimizer_type, optimizer_kwargs)
    dense = None if hasattr(model, "embedding_bags") else training.SGD(lr=1.0)
    return ecrec.distribute(model, session(), sparse=fused, dense=dense)


def jt_is_equal(one: Any, other: Any) -> bool:
    """By keys, lists and weights; TorchRec's own function asks for its class."""
    return isinstance(one, training.JaggedTensor) and type(one) is type(other) and str(one) == str(other)


def kjt_is_equal(one: Any, other: Any) -> bool:
    """As `jt_is_equal`."""
    return isinstance(one, training.KeyedJaggedTensor) and type(one) is type(other) and str(one) == str(other)


SHIMS = {
    made.__name__: made for made in (FusedEmbeddingBagCollection, fuse_embedding_optimizer, jt_is_equal, kjt_is_equal)
}


def replacement(name: str, original: Any) -> Any:
    if name in SHIMS:
        return SHIMS[name]
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


def draw_at_any_speed() -> None:
    """Hypothesis fails a test whose examples a busy machine is slow to draw, and draws others in each run."""
    with contextlib.suppress(ImportError):
        from hypothesis import HealthCheck, settings

        settings.register_profile("ecrec", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        settings.load_profile("ecrec")


def main() -> None:
    draw_at_any_speed()
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
