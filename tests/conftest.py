"""Fixtures that several test packages share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ecrec import _native

# The `kernel` fixture is function-scoped but the same for all examples of a test.
settings.register_profile(
    "ecrec", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
settings.load_profile("ecrec")


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in an empty directory: programs that tests start must find the ecrec that is installed, not the checkout."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(params=_native.compiled_kernels())
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on each kernel of the build; one that this machine cannot run is a visible skip."""
    name: str = request.param
    if name not in _native.kernels():
        pytest.skip(f"kernel {name} cannot run on this machine")
    before = _native.kernel()
    _native.use_kernel(name)
    assert _native.kernel() == name
    yield name
    assert _native.kernel() == name, "the test ran partly on another kernel"
    _native.use_kernel(before)


FAST_FIRST = ("tidy", "unit", "property", "fuzz", "training", "simulator", "integration")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What fails fast runs first."""
    root = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        parts = item.path.relative_to(root).parts
        return FAST_FIRST.index(parts[0]) if parts[0] in FAST_FIRST else len(FAST_FIRST)

    items.sort(key=rank)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes in the name of a test are unreadable. With a time in them, two processes of one run would disagree."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) else None
