"""Features of images as a .npz or Parquet file, written in pieces, which a run of this package replaces again."""

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ._files import Kind
from .errors import MissingExtraError
from .pieces import Piece

#: What tells these files from others.
_MARK = b"simclr-hub embed"
#: Writes all pieces, which it may go through several times, as one file.
Write = Callable[[Any, Callable[[], Iterator[Piece]], int], None]


def write_npz(file: Any, pieces: Callable[[], Iterator[Piece]], dim: int) -> None:
    """Write "paths" and "vectors" (N, D) as arrays of numpy, piece by piece."""
    rows = sum(len(piece.paths) for piece in pieces())
    text = max((piece.paths.dtype for piece in pieces()), key=lambda kind: kind.itemsize)
    with zipfile.ZipFile(file, "w") as archive:
        for name, kind, shape in (("paths", text, (rows,)), ("vectors", np.dtype(np.float32), (rows, dim))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                told = {"descr": kind.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, told)
                for piece in pieces():
                    member.write(getattr(piece, name).astype(kind, copy=False).tobytes())
        archive.comment = _MARK


def parquet_writer() -> Write:
    """Return what writes a table of "path" and "vector".

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtraError("pyarrow", "parquet") from e

    def write(file: Any, pieces: Callable[[], Iterator[Piece]], dim: int) -> None:
        vector = pyarrow.list_(pyarrow.float32(), dim)
        schema = pyarrow.schema([("path", pyarrow.string()), ("vector", vector)], metadata={_MARK: b""})
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            for piece in pieces():
                flat = pyarrow.array(piece.vectors.ravel(), pyarrow.float32())
                paths = pyarrow.array(piece.paths.tolist(), pyarrow.string())
                vectors = pyarrow.FixedSizeListArray.from_arrays(flat, dim)
                writer.write_table(pyarrow.table([paths, vectors], schema=schema))

    return write


def _is_features(path: Path) -> bool:
    """Return whether `embed` wrote a file."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.comment == _MARK
        import pyarrow.parquet

        return _MARK in (pyarrow.parquet.read_schema(pyarrow.OSFile(os.fsencode(path))).metadata or {})
    except (OSError, ValueError, zipfile.BadZipFile, ImportError):  # pyarrow's errors are ValueErrors and OSErrors
        return False


#: The kind of file that `embed` writes, see `_files.check_output`.
FEATURES = Kind("a file of features", (".npz", ".parquet"), _is_features)
