"""ISA-L, from pyeclib's wheel, called without Python in the loop."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecrec.bench.harness import PeerMissingError

U8 = NDArray[np.uint8]


LOOPS = Path(__file__).parent.parent / "native_calls.c"


class Isal:
    """ISA-L's functions and the loops that call them and ours; ``scratch`` is for the compiled loops.

    Raises PeerMissingError.
    """

    def __init__(self, scratch: Path) -> None:
        self.library = ctypes.CDLL(str(isal_path()))
        self.loops = ctypes.CDLL(str(compile_library(LOOPS, scratch)))
        for name in ("encode", "fold", "fold_rows"):
            for side in ("ours", "isal"):
                getattr(self.loops, f"time_{side}_{name}").restype = ctypes.c_double

    def function(self, name: str) -> ctypes.c_void_p:
        return ctypes.cast(getattr(self.library, name), ctypes.c_void_p)

    def tables(self, matrix: U8) -> U8:
        """uint8[matrix.size * 32]; in the format of the functions that ISA-L chooses for this CPU."""
        rows, columns = matrix.shape
        tables = np.zeros(matrix.size * 32, dtype=np.uint8)
        self.library.ec_init_tables(columns, rows, pointer(np.ascontiguousarray(matrix)), pointer(tables))
        return tables


def isal_path() -> Path:
    """The library in pyeclib's wheel."""
    spec = importlib.util.find_spec("pyeclib")
    if spec is None or spec.origin is None:
        raise PeerMissingError('pyeclib is not installed: pip install "ecrec[bench]"')
    found = sorted((Path(spec.origin).parent.parent / "pyeclib.libs").glob("libisal*.so*"))
    if not found:
        raise PeerMissingError("this pyeclib has no ISA-L in its wheel")
    return found[0]


def compile_library(source: Path, scratch: Path, *options: str) -> Path:
    """A C file as a shared library in ``scratch``. Raises PeerMissingError without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise PeerMissingError(
            f"no C compiler (cc), which the loops around both sides need ({source.name}): install gcc or clang"
        )
    library = scratch / f"{source.stem}.so"
    subprocess.run([compiler, "-O2", *options, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def pointer(array: U8) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def pointers(arrays: Sequence[U8]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
