"""A user's own state: what is written is given back, and nothing of it is ever unpickled."""

import json
import math
import random
import struct

import numpy as np
import pytest

from ecrec.checkpoint.user_state import decode, encode
from ecrec.errors import CheckpointError, ConfigurationError

STATE = {
    "step": 7,
    "big": 1 << 80,
    "rate": 0.1,
    "nothing": None,
    "flag": True,
    "text": "é\u2028",
    "infinite": [math.inf, -math.inf],
    "tuple": (1, (2, "x")),
    "empty": {},
    "by number": {3: "three", -1: [], (1, 2): 0},
    "$tensor": "no tensor",
    "nested": {"$tuple": 1, "b": {"c": [{"d": 1.5}]}},
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "strided": np.arange(10)[::3],
    "none of it": np.empty((0, 4)),
    "alone": np.array(2.5),
    "scalar": np.float32(1.5),
    "flags": np.array([True, False]),
    "big-endian": np.arange(3, dtype=">i4"),
}


def same(ours, theirs):
    if isinstance(ours, np.ndarray | np.generic):
        assert type(ours) is type(theirs) and ours.dtype.newbyteorder("<") == theirs.dtype
        return ours.shape == theirs.shape and bool((np.asarray(ours) == np.asarray(theirs)).all())
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def test_what_is_written_is_given_back():
    assert same(STATE, decode(encode(STATE), "state"))
    assert math.isnan(decode(encode({"x": math.nan}), "state")["x"])
    generator = random.Random(3)
    generator.setstate(decode(encode({"r": random.Random(5).getstate()}), "state")["r"])
    assert generator.random() == random.Random(5).random()


def test_others_read_it():
    safetensors = pytest.importorskip("safetensors.numpy")
    data = encode({"a": np.arange(3), "b": {"c": np.float32(2)}})
    found = safetensors.load(data)
    (length,) = struct.unpack_from("<Q", data)
    tree = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    assert found[tree["a"]["$tensor"]].tolist() == [0, 1, 2] and found[tree["b"]["c"]["$tensor"]] == 2


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    from ecrec.training.user_state import convert, make

    state = {
        "rng": torch.get_rng_state(),
        "half": torch.tensor([1.5, 2.5], dtype=torch.float16),
        "bf16": torch.tensor([[1.5, -3.0]], dtype=torch.bfloat16),
        "one": torch.tensor(3),
        "array": np.ones(2),
        "parameter": torch.nn.Parameter(torch.ones(2, 3).t()),
    }
    found = decode(encode(state, convert), "state", make)
    for name, value in state.items():
        assert type(found[name]) is (np.ndarray if name == "array" else torch.Tensor)
        assert found[name].dtype == value.dtype and bool((found[name] == value).all()), name
    with pytest.raises(ConfigurationError, match=r"state\['s'\] is a tensor of torch.sparse_coo"):
        encode({"s": torch.eye(2).to_sparse()}, convert)


def test_what_cannot_be_written_is_named():
    itself = []
    itself.append(itself)
    for value, words in [
        (object(), r"state\['a'\]\['b'\]\[1\] is a builtins.object: expected None"),
        (np.array(["x"]), "is an array of <U1: it cannot be written without pickle"),
        (np.array([object()]), "is an array of object"),
        (b"bytes", "is a builtins.bytes"),
        (itself, "dicts and lists in each other"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            encode({"a": {"b": [0, value]}})
    with pytest.raises(ConfigurationError, match=r"state has 67\.1 MB, at most 67\.1 are possible"):
        encode({"a": np.zeros(64 << 20, np.uint8)})
    with pytest.raises(ConfigurationError, match="state is a list"):
        encode([1])


def test_a_damaged_or_hostile_file_is_refused():
    good = encode({"a": np.arange(4), "b": 1})

    def with_header(change):
        (length,) = struct.unpack_from("<Q", good)
        header = json.loads(good[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + length :]

    deep = "[" * 100_000 + "]" * 100_000
    for data in [
        b"",
        b"\xff" * 8,
        good[:20],
        good[:-1],
        struct.pack("<Q", 4) + b"nope",
        with_header(lambda h: h["0"].update(shape=[1 << 39, 1 << 39])),
        with_header(lambda h: h["0"].update(dtype="O")),
        with_header(lambda h: h["0"].update(data_offsets=[-32, 0])),
        with_header(lambda h: h["0"].update(shape=[-4])),
        with_header(lambda h: h["__metadata__"].update(state=deep)),
        with_header(lambda h: h["__metadata__"].pop("state")),
        with_header(lambda h: h["__metadata__"].update(state='{"a": {"$tensor": "9"}}')),
        with_header(lambda h: h["__metadata__"].update(state="[1]")),
        with_header(lambda h: h.update(x=3)),
        with_header(lambda h: h["__metadata__"].update(state='{"a": {"$items": [[[], 1]]}}')),
    ]:
        with pytest.raises(CheckpointError, match="where: damaged, or no state"):
            decode(data, "where")
