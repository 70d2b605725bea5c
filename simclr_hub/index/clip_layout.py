"""clip-retrieval's layout, written and read as an index: img_emb/img_emb_0.npy (N, D), metadata/metadata_0.parquet.

Two files a part, and nothing says which model made them: it is for programs that read this layout, not for keeping.
"""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .. import _files
from .._threads import Pool
from ..errors import ExportError, ImageError, IndexExistsError
from ..images import describe, load_image, read_file
from ..runtimes import cores
from ..scan import FileStat
from ..signature import picture_signature
from .maker import as_embedder, choose_whitening, unit_vector
from .parquet import PAGE, Header, _pyarrow, export_schema, import_files, photo_row, write_rows
from .store import About, Details, Photo, Root, Store

#: Photos of a part that is written.
ROWS = 1_000_000
_WHITENED = "they look whitened, of which an index cannot be made: export after `simclr-hub whiten INDEX --off`"
_NAMES = {"img_emb": re.compile(r"img_emb_(\d+)\.npy"), "metadata": re.compile(r"metadata_(\d+)\.parquet")}
#: Columns with the path of an image, or its name in a data set.
_PATHS = ("image_path", "key", "url")


def export_clip(file: Path, out: Path, *, progress: Callable[[int, int], object] | None = None) -> int:
    """Write the photos of a store that are there as clip-retrieval does, into a new folder; return how many.

    The vectors are those that a search compares: whitened, if the index is.

    Raises:
        MissingExtraError: pyarrow is not installed.
        FileExistsError, OutputError: `out` is not a place for it.
    """
    pa = _pyarrow()
    with closing(Store(file, read_only=True)) as store, store.reading():
        roots = store.roots()
        photos, whitening = store.counts()["live"], store.whitening()
        dim, done = whitening.dim if whitening else store.about.dim, 0
        _files.check_output(out, _files.FOLDER, photos=[os.fsdecode(root.path) for root in roots.values()])
        pages = _live(store)
        with _files.new_directory(out) as partial:
            for kind in _NAMES:
                (partial / kind).mkdir()
            width = len(str(max(0, photos - 1) // ROWS))
            for number, first in enumerate(range(0, max(1, photos), ROWS)):
                rows = min(ROWS, photos - first)
                paths: list[str] = []
                with open(partial / "img_emb" / f"img_emb_{number:0{width}}.npy", "wb") as target:
                    told = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
                    np.lib.format.write_array_header_1_0(target, told)
                    while len(paths) < rows:
                        page = next(pages)
                        vectors = np.stack([vector for _, vector in page])
                        vectors = whitening.apply(vectors, normalize=True) if whitening else vectors
                        target.write(vectors.astype("<f4").tobytes())
                        paths += [describe(os.fsdecode(roots[photo.root_id].join(photo.path))) for photo, _ in page]
                        done += len(page)
                        if progress:
                            progress(done, photos)
                table = pa.table({"image_path": pa.array(paths, pa.string())})
                with open(partial / "metadata" / f"metadata_{number:0{width}}.parquet", "wb") as target:
                    pa.parquet.write_table(table, target)
    return photos


def _live(store: Store) -> Iterator[list[tuple[Photo, np.ndarray]]]:
    """Yield live photos with their vectors, some at once; no part of `ROWS` ends within them."""
    after, some = (0, b""), list[tuple[Photo, np.ndarray]]()
    while page := store.page(after, PAGE):
        after = (page[-1].root_id, page[-1].path)
        for photo in page:
            if photo.state == "live":
                vector = store.vector(photo.content_hash or b"")
                if vector is None:
                    raise store.damaged("a photo without a vector")
                some.append((photo, vector))
                if len(some) == 64:  # divides ROWS
                    yield some
                    some = []
    if some:
        yield some


def import_clip(
    folder: Path, directory: Path, model: Any, *, progress: Callable[[int, int], object] | None = None
) -> int:
    """Make an index of a folder in clip-retrieval's layout; return how many photos.

    Photos whose files are here are read, not embedded, so that a sync knows them; others are known by name alone.

    Args:
        folder: holds `img_emb` and `metadata`.
        directory: the new index; must not exist or be empty.
        model: what made the vectors, as `Embedder` takes it, or an embedder: nothing in the folder tells.
        progress: called with (done, total) photos.

    Raises:
        ExportError: the files of a part do not fit one another or the model; nothing was made.
        CheckpointError: the model cannot be loaded.
        IndexExistsError, OutputError: `directory` is not a place for it.
    """
    if os.path.isdir(directory) and os.listdir(directory):
        raise IndexExistsError(f"{describe(directory)} exists already, a folder; choose another name")
    parts = _parts(folder)
    embedder = as_embedder(model)
    fingerprint = {key: value for key, value in embedder.fingerprint.items() if key != "whitening"}
    about = About(fingerprint, embedder.dim)
    above: set[str] = set()
    for vectors, metadata in parts:
        places, shape = _places(metadata, folder), _vectors(vectors).shape
        if shape != (len(places), about.dim):
            whitening = choose_whitening(model, embedder, None)
            whitened = whitening is not None and shape == (len(places), whitening.dim)
            raise ExportError(
                f"{describe(vectors)}: {' x '.join(map(str, shape))} numbers, for {len(places):,} rows of "
                f"{metadata.name} and a model that gives vectors of {about.dim}; "
                + (_WHITENED if whitened else "give what belongs together")
            )
        above |= {os.path.dirname(place) for place in places}
    root = Root(0, os.fsencode(os.path.commonpath(above) if above else os.path.abspath(folder)), "ok")
    with tempfile.TemporaryDirectory() as name:
        files: list[Path] = []
        seen: dict[bytes, np.ndarray] = {}
        for vectors, metadata in parts:
            places = _places(metadata, folder)
            header = Header(about, [(os.fsdecode(root.path), "ok")], os.sep, [], len(places))
            files.append(Path(name, f"{len(files)}.parquet"))
            with open(files[-1], "wb") as target:
                write_rows(target, export_schema(header), header, _rows(vectors, places, root, seen))
        return import_files(files, directory, progress=progress)


def _parts(folder: Path) -> list[tuple[Path, Path]]:
    """Return the pairs of files (vectors, metadata).

    Raises:
        ExportError: none, or one without the other.
    """
    found: dict[str, dict[int, Path]] = {}
    for kind, pattern in _NAMES.items():
        paths = (folder / kind).iterdir() if (folder / kind).is_dir() else ()
        found[kind] = {int(match[1]): path for path in paths if (match := pattern.fullmatch(path.name))}
    vectors, metadata = found.values()
    for number in sorted(vectors.keys() ^ metadata.keys()):
        alone = vectors.get(number) or metadata[number]
        raise ExportError(f"{describe(alone)}: its other file is missing, so the part is not whole")
    if not vectors:
        raise ExportError(f"{describe(folder)}: no img_emb/img_emb_0.npy beside metadata/metadata_0.parquet in it")
    return [(vectors[number], metadata[number]) for number in sorted(vectors)]


def _vectors(path: Path) -> np.ndarray:
    """Return the mapped vectors of a file (N, D), of float16 to float64.

    Raises:
        ExportError: it is damaged, or holds something else.
    """
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise ExportError(f"{describe(path)}: damaged, or no array of numpy: {e}") from e
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise ExportError(f"{describe(path)}: {vectors.dtype} of shape {vectors.shape}, not a row of floats an image")
    return vectors


def _places(path: Path, folder: Path) -> list[str]:
    """Return the absolute path of each row's image; a name that is none, such as a key, below the folder itself.

    Raises:
        ExportError: the file is damaged, or names no images.
    """
    pa = _pyarrow()
    try:
        file = pa.parquet.ParquetFile(pa.OSFile(os.fsencode(path)))
        names = file.schema_arrow.names
        column = next((name for name in _PATHS if name in names), None)
        if column is None:
            raise ExportError(f"{describe(path)}: none of the columns {', '.join(_PATHS)}, so no image has a name")
        given = file.read(columns=[column])[column].to_pylist()
    except (pa.ArrowException, OSError) as e:
        raise ExportError(f"{describe(path)}: damaged, or not a Parquet file: {e}") from e
    if any(not isinstance(name, str) or not name for name in given):
        raise ExportError(f"{describe(path)}: a row without a name in {column}")
    return [os.path.normpath(os.path.join(os.path.abspath(folder), name)) for name in given]


def _rows(path: Path, places: list[str], root: Root, seen: dict[bytes, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield the rows of an export, see `photo_row`; copies of a photo get the vector of the first, in `seen`."""
    vectors, scanned = _vectors(path), time.time_ns()
    with Pool(cores(), "simclr-read") as pool:
        for number, (place, (content, stat, details)) in enumerate(pool.map(_known, places, 4 * cores())):
            vector = unit_vector(np.asarray(seen.setdefault(content, vectors[number]), np.float32))  # still mapped
            if vector is None:
                raise ExportError(f"{describe(path)}: row {number:,} is zero or not finite")
            name = os.fsencode(os.path.relpath(place, os.fsdecode(root.path)))
            photo = Photo(root.id, name, stat, stat.settled(scanned), content, "live")
            yield photo_row(photo, root, 0, vector, details)


def _known(place: str) -> tuple[bytes, FileStat, Details | None]:
    """Return the hash of a photo, the state of its file and its details; of what is not here a hash of its own."""
    with suppress(ImageError):
        data, found = read_file(os.fsencode(place))
        image = load_image(data)
        details = Details(dict(image.info), picture_signature(image.pixels))
        return hashlib.sha256(data).digest(), FileStat.of(found), details
    return hashlib.sha256(b"clip-retrieval " + os.fsencode(place)).digest(), FileStat(0, 0, 0, 0), None
