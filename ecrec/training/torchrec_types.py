"""TorchRec's classes, where somebody has imported it. ecrec itself never does: they are found by what is loaded."""

import sys
from typing import Any

from ecrec.training.jagged_tensor import JaggedTensor
from ecrec.training.keyed_tensor import KeyedTensor

JAGGED = "torchrec.sparse.jagged_tensor"
EMBEDDING = "torchrec.modules.embedding_modules"


def loaded(module: str, name: str) -> Any:
    """A class of TorchRec's. None if nobody has imported its module: nothing can be of it."""
    return getattr(sys.modules.get(module), name, None)


def is_of(given: Any, module: str, name: str) -> bool:
    kind = loaded(module, name)
    return kind is not None and isinstance(given, kind)


def keyed_tensor_for(features: Any) -> Any:
    """The class that belongs to a KeyedJaggedTensor: TorchRec's for one of TorchRec's."""
    return loaded(JAGGED, "KeyedTensor") if is_of(features, JAGGED, "KeyedJaggedTensor") else KeyedTensor


def jagged_tensor_for(features: Any) -> Any:
    """As `keyed_tensor_for`."""
    return loaded(JAGGED, "JaggedTensor") if is_of(features, JAGGED, "KeyedJaggedTensor") else JaggedTensor
