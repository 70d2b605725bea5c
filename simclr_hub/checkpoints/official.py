"""official(): a released checkpoint by its name, downloaded and converted once, then from the cache without a network.

    HF_HOME/assets/simclr_hub/official/NAME/
        .lock                       held while one process downloads and converts
        source/                     TensorFlow's files; gone again after the conversion
        step-250228-0a1b2c3d4e5f/   the model, and source.json: where it is from; the name ends in the source's hash

The cache is huggingface_hub's for what is not from the Hub; HF_ASSETS_CACHE moves it. SIMCLR_HUB_BUCKET names a mirror
of https://storage.googleapis.com.
"""

import difflib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from huggingface_hub import cached_assets_path
from huggingface_hub.errors import OfflineModeIsEnabled

from .._files import new_directory
from ..errors import CheckpointError
from .catalog import CatalogEntry, config_of, entries
from .download import download

if TYPE_CHECKING:  # what is in the cache is found without torch
    from ..configuration_simclr import SimCLRConfig

BUCKET = "https://storage.googleapis.com"
#: Where converted models lie in the cache; another name once `convert` would write them otherwise.
_NAMESPACE = "official"
_NAME = re.compile(r"([\w.-]+)(?:@step-(\d+))?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Tell where converted weights are from, `source.json` beside them.

    Attributes:
        name: of the catalog.
        url: of TensorFlow's data file.
        step: of the checkpoint.
        sha256: of the data file.
        size: of the data file, in bytes.
    """

    name: str
    url: str
    step: int
    sha256: str
    size: int


def find(name: str) -> tuple[CatalogEntry, int | None]:
    """Look up "NAME" or "NAME@step-N": the catalog's entry, and that step.

    Raises:
        CheckpointError: there is none; close names are told.
    """
    match = _NAME.fullmatch(name)
    entry = entries().get(match[1]) if match else None
    if match is None or entry is None:
        close = difflib.get_close_matches(name, entries(), n=3)
        advice = f"is it {' or '.join(close)}?" if close else "`simclr-hub models --labels all` lists them"
        raise CheckpointError(f"{name}: neither a directory nor an official checkpoint's name; {advice}")
    return entry, int(match[2]) if match[2] else None


def official(name: str) -> Path:
    """Return an official checkpoint's directory, for any `from_pretrained`; download and convert it on first use.

    Args:
        name: of the catalog, such as "simclr-v2-r50-sk", or "simclr-v2-r50-sk@step-250228".

    Returns:
        A directory in the cache: the weights of a `SimCLRForImageClassification`, of which `SimCLRModel` takes its
        part, the processor's settings, and `source.json`.

    Raises:
        CheckpointError: no such name, it cannot be downloaded, is damaged, or is not the model that the name says.

    Example:
        >>> classifier = SimCLRForImageClassification.from_pretrained(official("simclr-v2-r50-finetuned-10pct"))
    """
    entry, step = find(name)
    with _explained(entry):
        home = cached_assets_path("simclr_hub", _NAMESPACE, entry.name)
        if not (there := _converted(home, step)):
            with _lock(home):
                there = _converted(home, step) or _fetch(entry, step, home)  # another process may have done it
    return there


def convert_official(
    name: str,
    out: str | os.PathLike[str],
    *,
    ema: bool = False,
    classifier_layer: int | None = None,
    image_size: int | None = None,
) -> "SimCLRConfig":
    """Write an official checkpoint to `out`, otherwise than the cache has it if an argument says so.

    Args:
        name: as for `official`.
        out: as for `convert`.
        ema: as for `convert`.
        classifier_layer: as for `convert`; by default what the catalog says.
        image_size: as for `convert`.

    Raises:
        CheckpointError: as `official` and `convert`.
        FileExistsError: something is at `out`.
    """
    entry, step = find(name)
    if not (ema or image_size or classifier_layer not in (None, entry.classifier_layer)):
        with new_directory(Path(out)) as directory:
            shutil.copytree(official(name), directory, dirs_exist_ok=True)
        from ..configuration_simclr import SimCLRConfig

        config: SimCLRConfig = SimCLRConfig.from_pretrained(out)
        return config
    layers = config_of(entry).projection_layers
    if ema and not (entry.version == 2 and entry.training == "pretrained"):  # before gigabytes are downloaded
        raise CheckpointError(f"{entry.name}: only v2's pretrained checkpoints have averaged weights")
    if classifier_layer is not None and classifier_layer > layers:
        raise CheckpointError(f"{entry.name}: classifier_layer={classifier_layer} must be 0 (h) to {layers}")
    layer = entry.classifier_layer if classifier_layer is None else classifier_layer
    with _explained(entry):
        home = cached_assets_path("simclr_hub", _NAMESPACE, entry.name)
        with _lock(home), _downloaded(entry, step, home) as (prefix, _):
            from .convert import convert

            return convert(prefix, out, ema=ema, classifier_layer=layer, image_size=image_size)


def lasting_name(directory: Path) -> str:
    """Return the lasting name of a directory that `official` returned: "NAME@step-N"."""
    source = json.loads((directory / "source.json").read_text(encoding="utf-8"))
    return f"{source['name']}@step-{source['step']}"


def _converted(home: Path, step: int | None) -> Path | None:
    found = sorted(home.glob(f"step-{'*' if step is None else step}-*"))
    return found[-1] if found else None


def _fetch(entry: CatalogEntry, step: int | None, home: Path) -> Path:
    with _downloaded(entry, step, home) as (prefix, source):
        path = home / f"step-{source.step}-{source.sha256[:12]}"
        with new_directory(path) as directory:
            from .convert import convert

            _check(entry, convert(prefix, directory, classifier_layer=entry.classifier_layer))
            (directory / "source.json").write_text(json.dumps(asdict(source), indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(prefix.parent)  # before the name is there: a kill in between costs a download, not the room
    return path


@contextmanager
def _downloaded(entry: CatalogEntry, step: int | None, home: Path) -> Iterator[tuple[Path, Origin]]:
    """Download TensorFlow's files, and drop them when they have been used.

    They are two or three times as large as what is converted from them, since they hold the optimiser's state and an
    average, and all that is of use later is their hash. They are kept when something else failed, such as a full disk,
    and dropped when they are found to be damaged, so that the next call begins anew.
    """
    for stale in home.glob(".*step-*"):  # of a process that was killed; no other can be here, for the lock
        shutil.rmtree(stale)
    folder = home / "source"
    folder.mkdir(exist_ok=True)
    base = f"{_bucket()}/{entry.location}"
    found = _remote_step(f"{base}/checkpoint", folder / "checkpoint")
    if step not in (None, found):
        raise CheckpointError(f"{entry.name}@step-{step}: {base} has step {found} now")
    prefix = folder / f"model.ckpt-{found}"
    data = Path(f"{prefix}.data-00000-of-00001")
    for path in (Path(f"{prefix}.index"), data):
        if not path.exists():
            download(f"{base}/{path.name}", path)
    with open(data, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    try:
        yield prefix, Origin(entry.name, f"{base}/{data.name}", found, digest.hexdigest(), data.stat().st_size)
    except CheckpointError:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _bucket() -> str:
    """Return the address of the official checkpoints: Google's bucket, or a mirror of it."""
    mirror = os.environ.get("SIMCLR_HUB_BUCKET") or BUCKET
    if not re.fullmatch(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/[\w./~-]*)?", mirror):
        raise CheckpointError(f"SIMCLR_HUB_BUCKET={mirror}: must be an address such as {BUCKET}")
    return mirror.rstrip("/")


def _remote_step(url: str, path: Path) -> int:
    """Read the step out of TensorFlow's file `checkpoint`; only its number is used, never a path."""
    download(url, path)  # also over what is there: it may say another step by now
    text = path.read_bytes()[:4096].decode("utf-8", "replace")
    found = re.search(r'^model_checkpoint_path: "model\.ckpt-(\d{1,12})"\s*$', text, re.MULTILINE)
    if not found:
        raise CheckpointError(f'{url}: has no line model_checkpoint_path: "model.ckpt-STEP" but {text[:80]!r}')
    return int(found[1])


def _check(entry: CatalogEntry, config: "SimCLRConfig") -> None:
    """Refuse weights of another architecture than the catalog says.

    Whether g was kept, and whether a pretrained one's classifier was, is the files' affair: no source says it of every
    set, and h is the same. `convert` refuses a classifier on g's first layer without that layer.
    """
    from ..configuration_simclr import SimCLRConfig

    expected = config_of(entry)
    wanted = {key: getattr(expected, key) for key in (*sorted(SimCLRConfig.__annotations__), "num_labels")}
    if not config.projection_layers:
        for key in ("projection_layers", "projection_type", "projection_dim"):
            del wanted[key]
    elif not expected.projection_layers:
        wanted["projection_layers"] = entry.version + 1  # v1's g has two, v2's three
    if entry.training == "pretrained" and "SimCLRForImageClassification" not in (config.architectures or ()):
        del wanted["num_labels"]
    different = [f"{k} {getattr(config, k)}, not {v}" for k, v in wanted.items() if getattr(config, k) != v]
    if different:
        raise CheckpointError(f"{entry.name}: the weights at its place are of another model: {'; '.join(different)}")


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    lock = FileLock(home / ".lock")
    try:
        lock.acquire(timeout=2)
    except Timeout:
        _log.warning("another process is downloading %s; waiting for it", home.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(entry: CatalogEntry) -> Iterator[None]:
    """Turn what can go wrong beside the download into one error that says what to do."""
    try:
        yield
    except OfflineModeIsEnabled as e:
        raise CheckpointError(
            f"{entry.name}: not in the cache, and HF_HUB_OFFLINE is set; unset it once to download it"
        ) from e
    except (CheckpointError, FileExistsError):
        raise
    except (OSError, ValueError) as e:  # the latter from huggingface_hub, when a file is where the cache should be
        raise CheckpointError(f"{entry.name}: {e}; make room, or set HF_HOME to a folder for the cache") from e
