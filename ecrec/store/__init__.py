"""The rows of one shard: the compiled store, and beside it `reference`, the slow store it is tested by."""

from ecrec._native import Capture, Copying, RowBuffer, Snapshot, Store, Window

__all__ = ["Capture", "Copying", "RowBuffer", "Snapshot", "Store", "Window"]
