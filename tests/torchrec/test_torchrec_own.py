"""TorchRec's own tests, from a checkout of it, on ecrec's classes: what docs/torchrec.md says of each is true.

    ECREC_TORCHREC=DIR pytest tests/torchrec/test_torchrec_own.py

What TorchRec's tests need besides (parameterized, hypothesis) must be installed.
"""

import os

import pytest
from own_tests import DIGESTS, FILES, NOT_PASSING, PAGE, digest, read, run, verdict

pytest.importorskip("torch")

CHECKOUT = os.environ.get("ECREC_TORCHREC", "")
if not CHECKOUT:
    pytest.skip("ECREC_TORCHREC names no checkout of TorchRec", allow_module_level=True)


@pytest.mark.parametrize("file", FILES)
def test_the_table_is_true(file: str) -> None:
    came = run(CHECKOUT, file)
    found = {test: verdict(file, test, each) for test, (each, _) in came.items()}
    said = read(PAGE.read_text())[file]
    for test, (each, error) in sorted(came.items()):
        print(f"{test}: {each} {error}")
    wrong = [test for test in found if found[test] != said.get(test, found[test])]
    assert not wrong, "docs/torchrec.md says otherwise"
    assert not [test for test, (each, _) in came.items() if each == "fail" and test not in NOT_PASSING[file]]
    if digest(CHECKOUT, file) == DIGESTS[file]:
        assert found == said, "the same version of this file has other tests than docs/torchrec.md"
