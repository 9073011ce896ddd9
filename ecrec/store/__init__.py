"""The rows of one shard: the compiled store, and beside it `reference`, the slow store it is tested by."""

from ecrec._native import Capture, RowBuffer, Store, Window

__all__ = ["Capture", "RowBuffer", "Store", "Window"]
