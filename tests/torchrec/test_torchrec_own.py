"""TorchRec's own tests, from a checkout of it, of models and collections that `ecrec.distribute` has put on servers.

    ECREC_TORCHREC=DIR pytest tests/torchrec/test_torchrec_own.py

Each file runs in a process of its own (``run_own_tests.py``). All its tests must pass, but for those in NOT_APPLYING,
with the reason, which must fail: one that passes after all is taken off the list. What TorchRec's tests need besides
(parameterized, hypothesis) must be installed. Verdicts below are those of the commit COMMIT; a newer one may have other
tests.

Left out as files: ``sparse/tests/test_keyed_jagged_tensor.py`` and ``test_jagged_tensor.py``. Nearly all of their tests
make features of floats, of varying batch sizes (VBE), or have them compiled; ecrec's hold ids, and TorchRec's own are
taken everywhere where ecrec's are.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

COMMIT = "376cac6ad13c3a6e7fd43cc0fe432abbc7c39f7d"

CHECKOUT = os.environ.get("ECREC_TORCHREC", "")
if not CHECKOUT:
    pytest.skip("ECREC_TORCHREC names no checkout of TorchRec", allow_module_level=True)

COMPILED = "rows come over sockets: torch.fx, TorchScript and torch.export do not see into that"
ON_THE_SERVERS = "the parameter of a table is on the device meta always, and its features on the CPU"
EMPTY = "a collection without tables is refused by name"
OTHER = "ecrec's KeyedTensor has no such text, size in bytes or pytree nodes; TorchRec's is given for its features"

FILES = {
    "models.tests.test_dlrm": ["EmbeddingBagCollection"],
    "models.tests.test_deepfm": ["EmbeddingBagCollection"],
    "modules.tests.test_embedding_modules": ["EmbeddingBagCollection", "EmbeddingCollection"],
    "modules.tests.test_fp_embedding_modules": ["EmbeddingBagCollection"],
    "sparse.tests.test_keyed_tensor": ["KeyedTensor"],
}
"""File -> the names in it that are replaced."""

NOT_APPLYING = {
    "models.tests.test_dlrm": {
        "DLRMExampleTest.test_export_serialization": COMPILED,
        "DLRMTest.test_fx": COMPILED,
        "DLRMTest.test_fx_script": COMPILED,
        "DLRMTest.test_no_sparse": EMPTY,
        "SparseArchTest.test_fx_and_shape": COMPILED,
        "SparseArchTest.test_fx_script": COMPILED,
    },
    "models.tests.test_deepfm": {
        "SimpleDeepFMNNTest.test_fx": COMPILED,
        "SimpleDeepFMNNTest.test_fx_script": COMPILED,
        "SimpleDeepFMNNTest.test_no_sparse": EMPTY,
    },
    "modules.tests.test_embedding_modules": {
        "EmbeddingBagCollectionTest.test_device": ON_THE_SERVERS,
        "EmbeddingBagCollectionTest.test_forward_with_meta_device": ON_THE_SERVERS,
        "EmbeddingBagCollectionTest.test_fx": COMPILED,
        "EmbeddingBagCollectionTest.test_scripting": COMPILED,
        "EmbeddingCollectionTest.test_fx": COMPILED,
        "EmbeddingCollectionTest.test_scripting": COMPILED,
    },
    "modules.tests.test_fp_embedding_modules": {
        "PositionWeightedModuleCollectionEmbeddingBagCollectionTest."
        "test_position_weighted_collection_module_ebc": COMPILED,
        "PositionWeightedModuleEmbeddingBagCollectionTest.test_position_weighted_module_ebc": COMPILED,
    },
    "sparse.tests.test_keyed_tensor": {
        "TestKeyedTensor.test_pytree": OTHER,
        "TestKeyedTensor.test_regroup_as_dict_fxable": COMPILED,
        "TestKeyedTensor.test_regroup_as_dict_scriptable": COMPILED,
        "TestKeyedTensor.test_regroup_fxable": COMPILED,
        "TestKeyedTensor.test_regroup_scriptable": COMPILED,
        "TestKeyedTensor.test_regroup_scriptable_inference": COMPILED,
        "TestKeyedTensor.test_scriptable": COMPILED,
        "TestKeyedTensor.test_size_in_bytes": OTHER,
        "TestKeyedTensor.test_size_in_bytes_different_dtypes": OTHER,
        "TestKeyedTensor.test_string_basic": OTHER,
        "TestKeyedTensor.test_string_none": OTHER,
        "TestKeyedTensor.test_string_values": OTHER,
    },
}


def verdicts(file: str) -> dict[str, tuple[str, str]]:
    """Test -> what came of it, and the first line of its error."""
    path = os.pathsep.join([CHECKOUT, *filter(None, [os.environ.get("PYTHONPATH")])])
    script = str(Path(__file__).with_name("run_own_tests.py"))
    done = subprocess.run(
        [sys.executable, script, f"torchrec.{file}", *FILES[file]],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("file", FILES)
def test_torchrecs_own_tests_pass_on_the_servers(file: str) -> None:
    found = verdicts(file)
    listed = NOT_APPLYING[file]
    for test, (verdict, error) in sorted(found.items()):
        why = f", does not apply: {listed[test]}" if test in listed else ""
        print(f"{test}: {verdict}{why} {error}")
    wrong = {test: error for test, (verdict, error) in found.items() if verdict == "fail" and test not in listed}
    assert not wrong
    assert not [test for test, (verdict, _) in found.items() if verdict == "pass" and test in listed]
    assert not listed.keys() - found.keys()
    assert sum(verdict == "pass" for verdict, _ in found.values()) >= 1
