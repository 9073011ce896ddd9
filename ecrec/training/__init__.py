"""What a PyTorch user sees. No server imports it, nor torch."""

from ecrec.training import optimizers
from ecrec.training.changes import Change, Changes, Resent
from ecrec.training.configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from ecrec.training.distribute import distribute
from ecrec.training.embedding import EmbeddingBagCollection, EmbeddingCollection
from ecrec.training.jagged_tensor import JaggedTensor
from ecrec.training.joining import connect
from ecrec.training.keyed_jagged_tensor import KeyedJaggedTensor
from ecrec.training.keyed_tensor import KeyedTensor
from ecrec.training.optimizers import *  # noqa: F403  # its __all__
from ecrec.training.replicated import ReplicatedModule
from ecrec.training.session import Session

__all__ = [
    "Change",
    "Changes",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "EmbeddingCollection",
    "EmbeddingConfig",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "PoolingType",
    "ReplicatedModule",
    "Resent",
    "Session",
    "connect",
    "distribute",
]
__all__ += optimizers.__all__
