"""TorchRec's own tests on ecrec's classes: which files run, and why a test does not pass.

    ECREC_TORCHREC=DIR python tests/torchrec/own_tests.py   # writes the tables of docs/torchrec.md

DIR is a checkout of TorchRec. `test_torchrec_own.py` runs the same, and fails where docs/torchrec.md is untrue.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMIT = "a48cef79ebc333da92af1311c04b041ee21a8e75"
PAGE = Path(__file__).parents[2] / "docs" / "torchrec.md"
MARK = "<!-- What follows is written by tests/torchrec/own_tests.py. -->\n"
PASS, FAIL, DOES_NOT_APPLY = "pass", "fail", "does not apply"

FILES = {
    "models.tests.test_dlrm": ["EmbeddingBagCollection"],
    "models.tests.test_deepfm": ["EmbeddingBagCollection"],
    "modules.tests.test_embedding_modules": ["EmbeddingBagCollection", "EmbeddingCollection"],
    "modules.tests.test_fused_embedding_modules": ["FusedEmbeddingBagCollection", "fuse_embedding_optimizer"],
    "modules.tests.test_fp_embedding_modules": ["EmbeddingBagCollection"],
    "modules.tests.test_feature_processor": ["KeyedJaggedTensor"],
    "modules.tests.test_feature_processor_": ["KeyedJaggedTensor"],
    "sparse.tests.test_keyed_tensor": ["KeyedTensor"],
    "sparse.tests.test_jagged_tensor": ["JaggedTensor", "KeyedJaggedTensor", "jt_is_equal"],
    "sparse.tests.test_keyed_jagged_tensor": ["JaggedTensor", "KeyedJaggedTensor", "kjt_is_equal"],
    "sparse.tests.test_jagged_tensor_validator": ["KeyedJaggedTensor"],
}
"""File -> the names in it that are replaced."""

DIGESTS = {
    "models.tests.test_dlrm": "e3463ea0e72f",
    "models.tests.test_deepfm": "f8598f8e6783",
    "modules.tests.test_embedding_modules": "bbf6d739d77d",
    "modules.tests.test_fused_embedding_modules": "6f1738dd0023",
    "modules.tests.test_fp_embedding_modules": "5af737a9fa94",
    "modules.tests.test_feature_processor": "c2cf0eb775bb",
    "modules.tests.test_feature_processor_": "80fd01d98043",
    "sparse.tests.test_keyed_tensor": "db8f13bd2e84",
    "sparse.tests.test_jagged_tensor": "5804ef7dcaa3",
    "sparse.tests.test_keyed_jagged_tensor": "57fa3436ec22",
    "sparse.tests.test_jagged_tensor_validator": "3b9cab411c00",
}
"""File -> the first digits of its SHA-256 at COMMIT. Another version may have other tests."""

GPU = "needs a GPU"
COMPILED = "TorchScript or torch.export, which do not see into what comes over sockets (torch.fx leaves it whole)"
SCRIPTED = "TorchScript: ecrec's classes are plain Python"
EMPTY = "a collection without tables is refused when it is made, before the model refuses it"
TWICE = "two tables of one name are refused, by TorchRec's EmbeddingBagCollection as well"
VBE = "batch sizes that differ by key (VBE) are refused by name"
UNFIT = "its values, weights and lengths do not fit together, which is refused"
BEFORE = "the invalid features are refused when they are made, before the validator sees them"
THEIRS = "it expects what a module of TorchRec's returns to be of the replaced class; it is TorchRec's own"
PRIVATE = "TorchRec's own module calls a private method of its KeyedJaggedTensor"

ON_THE_SERVERS = "the parameter of a table is on the device meta always: its rows are on the servers"
NO_CONTENTS = "features without contents (device meta) are refused: their ids are looked up"
ERROR = "refused as well, with a TypeError where TorchRec has an AssertionError"
ONE_OFFSET = "offsets of no lists are [0] here, and empty in TorchRec"
PYTREE = "ecrec's KeyedTensor is a leaf of torch's pytrees"

FAILURES = {ON_THE_SERVERS, NO_CONTENTS, ERROR, ONE_OFFSET, PYTREE}
"""Reasons of tests that apply, and fail by design. All other reasons say why a test does not apply."""

_JAGGED, _KEYED = "TestJaggedTensor", "TestKeyedJaggedTensor"
NOT_PASSING: dict[str, dict[str, str]] = {
    "models.tests.test_dlrm": {
        "DLRMExampleTest.test_export_serialization": COMPILED,
        "DLRMTest.test_fx_script": COMPILED,
        "DLRMTest.test_no_sparse": EMPTY,
        "SparseArchTest.test_fx_script": COMPILED,
    },
    "models.tests.test_deepfm": {
        "SimpleDeepFMNNTest.test_fx_script": COMPILED,
        "SimpleDeepFMNNTest.test_no_sparse": EMPTY,
    },
    "modules.tests.test_embedding_modules": {
        "EmbeddingBagCollectionTest.test_device": ON_THE_SERVERS,
        "EmbeddingBagCollectionTest.test_forward_with_meta_device": NO_CONTENTS,
        "EmbeddingBagCollectionTest.test_fx": COMPILED,
        "EmbeddingBagCollectionTest.test_scripting": COMPILED,
        "EmbeddingCollectionTest.test_fx": COMPILED,
        "EmbeddingCollectionTest.test_scripting": COMPILED,
    },
    "modules.tests.test_fused_embedding_modules": {
        "FusedEmbeddingBagCollectionTest.test_unweighted_batchsize_1_shared": TWICE,
    },
    "modules.tests.test_fp_embedding_modules": {
        "PositionWeightedModuleCollectionEmbeddingBagCollectionTest."
        "test_position_weighted_collection_module_ebc": COMPILED,
        "PositionWeightedModuleEmbeddingBagCollectionTest.test_position_weighted_module_ebc": COMPILED,
    },
    "modules.tests.test_feature_processor": {
        "PositionWeightedModuleTest.test_populate_weights_PositionWeightedProcessor": PRIVATE,
    },
    "modules.tests.test_feature_processor_": {
        "PositionWeightedCollectionModuleTest.test_populate_weights": SCRIPTED,
    },
    "sparse.tests.test_keyed_tensor": {
        "TestKeyedTensor.test_pytree": PYTREE,
        "TestKeyedTensor.test_regroup_as_dict_scriptable": SCRIPTED,
        "TestKeyedTensor.test_regroup_scriptable": SCRIPTED,
        "TestKeyedTensor.test_regroup_scriptable_inference": SCRIPTED,
        "TestKeyedTensor.test_scriptable": SCRIPTED,
    },
    "sparse.tests.test_jagged_tensor": {
        f"{_JAGGED}.test_compute_jt_dict_to_kjt_module": THEIRS,
        f"{_JAGGED}.test_empty": SCRIPTED,
        f"{_JAGGED}.test_float_lengths_offsets_throws": ERROR,
        f"{_JAGGED}.test_from_jt_dict_vb": VBE,
        f"{_JAGGED}.test_length_vs_offset": VBE,
        f"{_JAGGED}.test_str": UNFIT,
        f"{_JAGGED}.test_to_padded_dense": UNFIT,
        f"{_JAGGED}.test_to_padded_dense_weights": UNFIT,
        f"{_JAGGED}Tracing.test_jagged_tensor": UNFIT,
    },
    "sparse.tests.test_keyed_jagged_tensor": {
        "TestComputeKJTToJTDict.test_key_lookup": VBE,
        f"{_KEYED}.test_concat": UNFIT,
        f"{_KEYED}.test_concat_fxable": UNFIT,
        f"{_KEYED}.test_empty": SCRIPTED,
        f"{_KEYED}.test_empty_to_dict": ONE_OFFSET,
        f"{_KEYED}.test_empty_vb": VBE,
        f"{_KEYED}.test_equality": UNFIT,
        f"{_KEYED}.test_float_lengths_offsets_throws": ERROR,
        f"{_KEYED}.test_key_lookup_vb": VBE,
        f"{_KEYED}.test_meta_device_compatibility": NO_CONTENTS,
        f"{_KEYED}.test_permute_vb": VBE,
        f"{_KEYED}.test_permute_vb_duplicate": VBE,
        f"{_KEYED}.test_pytree_kjt": VBE,
        f"{_KEYED}.test_scriptable": SCRIPTED,
        f"{_KEYED}.test_split_vb": VBE,
        f"{_KEYED}.test_string_vb": VBE,
        f"{_KEYED}.test_to": UNFIT,
        f"{_KEYED}.test_to_dict_vb": VBE,
        f"{_KEYED}.test_vbe_kjt_stride": VBE,
        f"{_KEYED}Scripting.test_scriptable_empty": SCRIPTED,
        f"{_KEYED}Scripting.test_scriptable_forward": SCRIPTED,
        f"{_KEYED}Scripting.test_scriptable_init": SCRIPTED,
        f"{_KEYED}Scripting.test_scriptable_split": SCRIPTED,
        f"{_KEYED}TracingScripting.test_jit_tracable": SCRIPTED,
        f"{_KEYED}TracingScripting.test_traceable_empty_like": SCRIPTED,
        f"{_KEYED}TracingScripting.test_use_keyed_jagged_tensor_as_input": SCRIPTED,
        f"{_KEYED}TracingScripting.test_use_keyed_jagged_tensor_as_input_and_output": SCRIPTED,
        f"{_KEYED}TracingScripting.test_use_keyed_jagged_tensor_as_output": SCRIPTED,
    },
    "sparse.tests.test_jagged_tensor_validator": {
        f"TestJaggedTensorValidator.test_invalid_keyed_jagged_tensor_{i:02}": BEFORE for i in range(13)
    },
}
"""File -> test -> why it does not pass. Tests that skip themselves need a GPU."""


def digest(checkout: str, file: str) -> str:
    path = Path(checkout, "torchrec", *file.split(".")).with_suffix(".py")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def run(checkout: str, file: str) -> dict[str, tuple[str, str]]:
    """Test -> pass, fail or skip, and the first line of its error. Each file has a process of its own."""
    path = os.pathsep.join([checkout, *filter(None, [os.environ.get("PYTHONPATH")])])
    script = str(Path(__file__).with_name("run_own_tests.py"))
    done = subprocess.run(
        [sys.executable, script, f"torchrec.{file}", *FILES[file]],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def verdict(file: str, test: str, came: str) -> tuple[str, str]:
    """(pass, fail or does not apply; why) as the table has it. A failure without a reason is one of ours."""
    if came == "pass":
        return PASS, ""
    reason = GPU if came == "skip" else NOT_PASSING[file].get(test, "")
    return (FAIL if reason in FAILURES or not reason else DOES_NOT_APPLY), reason


def tables(found: Mapping[str, Mapping[str, tuple[str, str]]]) -> str:
    """What docs/torchrec.md has after the mark. ``found``: file -> test -> (pass, fail or does not apply; why)."""
    sums = [_sum(file, [each[0] for each in tests.values()]) for file, tests in found.items()]
    groups = {"models and modules": "m", "JaggedTensor, KeyedJaggedTensor, KeyedTensor": "s"}
    for name, first in groups.items():
        of_group = [each[0] for file, tests in found.items() if file.startswith(first) for each in tests.values()]
        sums.append(_sum(f"**{name}**", of_group))
    head = "| file of TorchRec's | pass | fail | does not apply | of those that apply |\n|---|---|---|---|---|"
    parts = ["\n".join(["", head, *sums])]
    for file, tests in found.items():
        rows = [f"| {test} | {came} | {why} |" for test, (came, why) in sorted(tests.items())]
        names = ", ".join(FILES[file])
        parts.append(f"## {file}\n\nReplaced: {names}.\n\n| test | | why |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _sum(name: str, verdicts: list[str]) -> str:
    passed, failed = verdicts.count(PASS), verdicts.count(FAIL)
    share = f"{100 * passed / (passed + failed):.1f} %" if passed + failed else "-"
    return f"| {name} | {passed} | {failed} | {verdicts.count(DOES_NOT_APPLY)} | {share} |"


def read(page: str) -> dict[str, dict[str, tuple[str, str]]]:
    """The tables of the page: file -> test -> (verdict, why)."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for part in page.partition(MARK)[2].split("\n## ")[1:]:
        lines = part.splitlines()
        rows = [
            line.strip("| ").split("|") for line in lines if line.startswith("| ") and not line.startswith("| test")
        ]
        found[lines[0]] = {row[0].strip(): (row[1].strip(), "|".join(row[2:]).strip()) for row in rows}
    return found


def main() -> None:
    checkout = os.environ["ECREC_TORCHREC"]
    found = {}
    for file in FILES:
        came = run(checkout, file)
        found[file] = {test: verdict(file, test, each) for test, (each, _) in came.items()}
        for test, (each, error) in sorted(came.items()):
            if found[file][test] == (FAIL, ""):
                print(f"{file} {test}: {each}, {error}")
        print(f'    "{file}": "{digest(checkout, file)}",')
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + tables(found))


if __name__ == "__main__":
    main()
