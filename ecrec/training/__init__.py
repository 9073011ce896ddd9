"""What a PyTorch user sees; the only package of ecrec that imports torch."""

from ecrec.training.embedding import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from ecrec.training.keyed_jagged_tensor import JaggedTensor, KeyedJaggedTensor
from ecrec.training.optimizers import FTRL, SGD, Adagrad, Adam, Optimizer, RowWiseAdagrad
from ecrec.training.replicated import ReplicatedModule
from ecrec.training.session import Session, connect

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "Optimizer",
    "PoolingType",
    "ReplicatedModule",
    "RowWiseAdagrad",
    "Session",
    "connect",
]
