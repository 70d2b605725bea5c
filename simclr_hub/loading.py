"""A name, a directory or a Hub id@revision, to a model, its processor, and what identifies the weights."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from .checkpoints.download import snapshot
from .checkpoints.official import lasting_name, official
from .configuration_simclr import SimCLRConfig
from .errors import CheckpointError
from .image_processing_simclr import SimCLRImageProcessor
from .model_folder import inside
from .modeling_simclr import SimCLRModel
from .whitening import WHITENING_NAMES, Whitening

DEFAULT = "default"
#: What of a Hub repository is downloaded: never code, never a pickle.
_PATTERNS = ["config.json", "preprocessor_config.json", "*.safetensors", "model.safetensors.index.json"]


def load(name: str | os.PathLike[str] | None = None) -> tuple[SimCLRModel, SimCLRImageProcessor]:
    """A SimCLR encoder in eval mode and the processor that belongs to it.

    Args:
        name: None or "default" (the checkpoint inside this package); a directory that `from_pretrained` or
            `simclr-hub convert` knows; an official checkpoint's name, such as "simclr-v2-r50-sk", which is downloaded
            and converted once; or a Hub id, "org/name" or "org/name@revision". For an official classifier's logits
            see `simclr_hub.checkpoints.official.official`.

    Raises:
        CheckpointError: there is no such model; its weights are damaged, incomplete, of another model, no safetensors
            or outside its folder; or a setting of it is out of bounds.
    """
    directory, source = _locate(name)
    try:
        with quiet_transformers():
            model = SimCLRModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
        if os.path.lexists(directory / "preprocessor_config.json"):
            processor = SimCLRImageProcessor.from_pretrained(directory, local_files_only=True)
        else:
            processor = SimCLRImageProcessor(size=model.config.image_size)
    except CheckpointError:
        raise
    except StrictDataclassError as e:  # of the config; its cause says what
        raise CheckpointError(f"{source}: {e.__cause__ or e}") from e
    except (
        Exception
    ) as e:  # transformers and safetensors raise OSError, ValueError, RuntimeError, SafetensorError, ...
        raise CheckpointError(f"{source}: {e}") from e
    model.config.name_or_path = source
    return model.eval(), processor


def load_whitening(name: str | os.PathLike[str] | None = None, layer: str = "h") -> Whitening | None:
    """The whitening that comes with a checkpoint; None if none does.

    Args:
        name: as for `load`.
        layer: "h" or "h+stage3"; there is none for others.

    Raises:
        CheckpointError: there is no such model, or its whitening is damaged.
    """
    if layer not in WHITENING_NAMES:
        return None
    path = _locate(name)[0] / WHITENING_NAMES[layer]
    return own_whitening(path) if os.path.lexists(path) else None


def own_whitening(path: Path) -> Whitening:
    """Read a whitening that lies in a model's folder.

    Raises:
        CheckpointError: it is damaged, or elsewhere.
    """
    try:
        return Whitening.load(inside(path))
    except ValueError as e:
        raise e if isinstance(e, CheckpointError) else CheckpointError(str(e)) from e


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars, for loading and saving, which take a moment."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def weights_hash(model: SimCLRModel, *, with_projection: bool = False) -> str:
    """SHA-256 over the architecture and every weight of the encoder (and of g), independent of where they lie."""
    config: SimCLRConfig = model.config
    architecture = {k: getattr(config, k) for k in sorted(SimCLRConfig.__annotations__) if k not in _NOT_IDENTITY}
    # 1 and 1.0 are the same width.
    architecture = {k: float(v) if isinstance(v, int) else v for k, v in architecture.items()}
    digest = hashlib.sha256(json.dumps(architecture).encode())
    for key, value in sorted(model.state_dict().items()):
        if not key.endswith("num_batches_tracked") and (with_projection or key.startswith("encoder.")):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


_NOT_IDENTITY = {
    "model_type",
    "projection_layers",
    "projection_type",
    "projection_dim",
    "projection_hidden_dim",
    "classifier_layer",
    "image_size",
}


def _locate(name: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """The directory that holds the model, and its lasting name."""
    if name is None or name == DEFAULT:
        return Path(str(files(__package__) / "assets" / "default")), DEFAULT
    path = Path(name)
    if path.is_dir():
        return path, str(path.resolve())
    inside_one = isinstance(name, str) and "/" in name and os.path.isdir(name.partition("/")[0])  # a misspelt path
    if inside_one or not isinstance(name, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name):
        raise CheckpointError(
            f"{os.fspath(name)}: neither a directory, nor an official name, nor a Hub id such as org/name or "
            "org/name@revision"
        )
    if "/" not in name.partition("@")[0]:
        with quiet_transformers():
            directory = official(name)
        return directory, lasting_name(directory)
    repo, _, revision = name.partition("@")
    # The snapshot's folder is the commit: the name is resolved once, and offline works from the cache.
    folder = snapshot(repo, revision or None, _PATTERNS)
    return folder, f"{repo}@{folder.name}"
