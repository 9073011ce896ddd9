"""docs/torchrec.md, where no checkout of TorchRec is at hand: complete, and its sums are right."""

from own_tests import (
    COMMIT,
    DIGESTS,
    DOES_NOT_APPLY,
    FAIL,
    FAILURES,
    FILES,
    GPU,
    MARK,
    NOT_PASSING,
    PAGE,
    PASS,
    read,
    tables,
)


def test_each_reason_of_the_table_is_one_of_ours() -> None:
    said = read(PAGE.read_text())
    assert list(said) == list(FILES) == list(NOT_PASSING) == list(DIGESTS)
    for file, tests in said.items():
        reasons = {test: why for test, (_, why) in tests.items() if why and why != GPU}
        assert reasons == NOT_PASSING[file]
        for came, why in tests.values():
            assert came == (PASS if not why else FAIL if why in FAILURES else DOES_NOT_APPLY)


def test_its_sums_are_those_of_its_rows() -> None:
    text, _, written = PAGE.read_text().partition(MARK)
    assert written == tables(read(MARK + written)) and COMMIT[:12] in text


def test_of_the_tests_of_models_and_modules_that_apply_at_least_95_percent_pass() -> None:
    came = [each for file, tests in read(PAGE.read_text()).items() if file[0] == "m" for each, _ in tests.values()]
    assert came.count(PASS) >= 54 and came.count(PASS) >= 0.95 * (came.count(PASS) + came.count(FAIL))
