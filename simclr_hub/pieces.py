"""The features of many images, kept in pieces while they are made: a kill costs one, and memory holds one.

A folder beside the output, `NAME.pieces`, that goes when the output is there. Needs no pyarrow.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._files import write_file
from ._text import shown
from .errors import OutputError

#: Images of a piece.
IMAGES = 4096
_ABOUT = "about.json"


class Piece(NamedTuple):
    """Some of the images: names and vectors (N, D) float32 of those that could be used; the others, and why not."""

    paths: np.ndarray
    vectors: np.ndarray
    failed: np.ndarray
    errors: np.ndarray


class Pieces:
    """The pieces of one output.

    Args:
        output: what they become; the folder is made with the first of them.

    Attributes:
        sources: how many images the pieces hold that are there already, from the first on.

    Raises:
        OutputError: the folder there is none of ours, or a piece is damaged.
    """

    def __init__(self, output: Path):
        self.folder = output.with_name(f"{output.name}.pieces")
        self._number = 0
        self.sources = 0
        if self.folder.is_symlink() or (self.folder.exists() and not (self.folder / _ABOUT).is_file()):
            raise OutputError(f"{self._shown()} exists, and not as the pieces of an output; choose another name")
        while self._file(self._number).is_file():
            piece = self._read(self._number)
            self.sources += len(piece.paths) + len(piece.failed)
            self._number += 1

    def check(self, run: dict[str, Any]) -> None:
        """Refuse pieces of another run: other images, another model or other settings.

        Raises:
            OutputError: they are.
        """
        self._run = json.dumps(run, sort_keys=True)
        if self.folder.exists() and (self.folder / _ABOUT).read_text(encoding="utf-8") != self._run:
            raise OutputError(
                f"{self._shown()} holds what an interrupted run made of other images, or with another model or other "
                "settings; run that again, delete the folder, or choose another name"
            )

    def put(self, piece: Piece) -> None:
        """Write the next piece, whole or not at all."""
        if not self.folder.exists():
            self.folder.mkdir()
            write_file(self.folder / _ABOUT, lambda file: file.write(self._run.encode()))
        write_file(self._file(self._number), lambda file: np.savez(file, **piece._asdict()))
        self._number += 1

    def __iter__(self) -> Iterator[Piece]:
        return map(self._read, range(self._number))

    def remove(self) -> None:
        """Delete the folder, once the output is there."""
        if self._number:
            shutil.rmtree(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _read(self, number: int) -> Piece:
        try:
            with np.load(self._file(number), allow_pickle=False) as saved:
                return Piece(*(saved[name] for name in Piece._fields))
        except Exception as e:  # of a damaged file numpy and zipfile raise whatever they like
            raise OutputError(f"{shown(str(self._file(number)))} is damaged: {e}; delete the folder it is in") from e

    def _shown(self) -> str:
        return shown(str(self.folder))
