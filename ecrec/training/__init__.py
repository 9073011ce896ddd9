"""What a PyTorch user sees. No server imports it, nor torch."""

from ecrec.training.changes import Change, Changes, Resent
from ecrec.training.configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from ecrec.training.distribute import distribute
from ecrec.training.embedding import EmbeddingBagCollection, EmbeddingCollection
from ecrec.training.keyed_jagged_tensor import JaggedTensor, KeyedJaggedTensor
from ecrec.training.keyed_tensor import KeyedTensor
from ecrec.training.optimizers import FTRL, SGD, Adagrad, Adam, Optimizer, RowWiseAdagrad
from ecrec.training.replicated import ReplicatedModule
from ecrec.training.session import Session, connect

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "Change",
    "Changes",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "EmbeddingCollection",
    "EmbeddingConfig",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "Optimizer",
    "PoolingType",
    "ReplicatedModule",
    "Resent",
    "RowWiseAdagrad",
    "Session",
    "connect",
    "distribute",
]
