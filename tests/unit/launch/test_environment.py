"""Values that come as arguments or from the environment: right, or an error that names them."""

import pytest

from ecrec.errors import ConfigurationError
from ecrec.launch.environment import WAIT_TIMEOUT_MS, wait_timeout_ms


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "abc", True])
def test_a_wait_that_is_no_time_is_refused_by_its_name(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^wait_timeout_ms .*expected milliseconds above 0"):
        wait_timeout_ms(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0", "-3", "3s", "abc", "1.5", "³"])
def test_a_variable_that_is_no_time_is_refused_by_its_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_TIMEOUT_MS, text)
    with pytest.raises(ConfigurationError, match=r"^ECREC_WAIT_TIMEOUT_MS='.*': expected milliseconds"):
        wait_timeout_ms()
    assert wait_timeout_ms(250.0) == 250.0


def test_without_either_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WAIT_TIMEOUT_MS, raising=False)
    assert wait_timeout_ms() is None
    monkeypatch.setenv(WAIT_TIMEOUT_MS, "3000")
    assert wait_timeout_ms() == 3000
