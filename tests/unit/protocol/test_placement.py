"""Where rows, parities and replicas live, and codes and optimizers that are refused."""

from typing import Any

import pytest

from ecrec.errors import ConfigurationError
from ecrec.protocol.placement import OPTIMIZERS, CodeSpec, OptimizerSpec, Placement


@pytest.mark.parametrize(("text", "k", "r"), [("4+1", 4, 1), ("1+0", 1, 0), ("10+6", 10, 6)])
def test_a_code_is_read_and_written(text: str, k: int, r: int) -> None:
    assert CodeSpec.parse(text) == CodeSpec(k, r)
    assert str(CodeSpec(k, r)) == text


@pytest.mark.parametrize(
    "text",
    ["", "4", "+1", "4+", "0+1", "-1+1", "4+-1", "4+1+1", " 4+1", "4+x", "x+1", "²+1", "4+²", "\u0664+1", "4+\u0661"],
)
def test_what_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected K\+R with K >= 1 and R >= 0"):
        CodeSpec.parse(text)


@pytest.mark.parametrize("given", [None, 4, b"4+1", ("4", "1")])
def test_a_code_that_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"expected a text, K\+R, for example '4\+1'"):
        CodeSpec.of(given)


def test_an_optimizer_is_known_and_has_its_hyper_parameters() -> None:
    for name, kind in OPTIMIZERS.items():
        OptimizerSpec(name, (0.1,) * len(kind.hyper)).check()
        for count in (len(kind.hyper) - 1, len(kind.hyper) + 1):
            with pytest.raises(ConfigurationError, match=f"{count} hyper-parameters; expected {', '.join(kind.hyper)}"):
                OptimizerSpec(name, (0.1,) * count).check()
    with pytest.raises(ConfigurationError, match="optimizer 'x': expected one of sgd"):
        OptimizerSpec("x", (0.1,)).check()
    with pytest.raises(ConfigurationError) as found:
        OptimizerSpec("x" * 10_000, (0.1,)).check()
    assert len(str(found.value)) < 500, "a name of any length does not fill the log"


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("sgd", 0),
        ("momentum", 16),
        ("adagrad", 16),
        ("rowwise-adagrad", 1),
        ("adam", 36),
        ("rmsprop", 16),
        ("ftrl", 32),
    ],
)
def test_state_of_a_row(name: str, floats: int) -> None:
    assert OptimizerSpec(name, ()).state_floats(16) == floats


@pytest.mark.parametrize("n", [0, 17, -1])
def test_a_group_has_one_to_sixteen_shards(n: int) -> None:
    with pytest.raises(ConfigurationError, match=f"1 to 16 shards, not {n}"):
        Placement(n)
    assert Placement(1).n == 1 and Placement(16).n == 16


@pytest.mark.parametrize("code", [CodeSpec(0, 1), CodeSpec(1, -1), CodeSpec(3, 2), CodeSpec(5, 0)])
def test_a_code_that_does_not_fit_the_group_is_refused_and_not_numbered(code: CodeSpec) -> None:
    placement = Placement(4)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="different shards"):
            placement.add(code)
    assert placement.codes == [] and placement.classes == []
    placement.add(CodeSpec(3, 1))
    placement.add(CodeSpec(4, 0))
    assert placement.codes == [CodeSpec(3, 1), CodeSpec(4, 0)]


def test_a_group_has_at_most_as_many_codes_as_fit_the_classes() -> None:
    placement = Placement(16)
    for r in range(4):
        placement.add(CodeSpec(1, r))
    assert len(placement.classes) == 64
    placement.add(CodeSpec(1, 2))
    placement.check(CodeSpec(1, 3))
    with pytest.raises(ConfigurationError, match=r"can hold 4 different codes, and has 1\+0, 1\+1, 1\+2, 1\+3"):
        placement.add(CodeSpec(2, 2))
    assert len(placement.classes) == 64 and len(placement.codes) == 4


def test_a_group_that_does_not_divide_the_classes_has_one_code_less() -> None:
    placement = Placement(13)
    for r in range(4):
        placement.add(CodeSpec(1, r))
    with pytest.raises(ConfigurationError, match="can hold 4 different codes"):
        placement.add(CodeSpec(2, 1))


def test_classes_and_their_members() -> None:
    placement = Placement(4)
    placement.add(CodeSpec(2, 1))
    placement.add(CodeSpec(1, 2))
    assert [stripe.class_id for stripe in placement.classes] == list(range(8))
    assert placement.classes[3] == (3, (3, 0), (1,))
    assert placement.classes[7] == (7, (3,), (0, 1))
    assert [placement.code_of(class_id) for class_id in (0, 3, 4, 7)] == [CodeSpec(2, 1)] * 2 + [CodeSpec(1, 2)] * 2
    assert placement.data_classes(0) == [0, 3, 4]
    assert placement.parity_classes(0) == [2, 6, 7]


def test_the_tolerance_is_that_of_the_weakest_code() -> None:
    placement = Placement(5)
    assert placement.tolerance() == 0
    placement.add(CodeSpec(3, 2))
    assert placement.tolerance() == 2
    placement.add(CodeSpec(4, 1))
    placement.add(CodeSpec(1, 3))
    assert placement.tolerance() == 1
