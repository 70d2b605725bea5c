"""A name, a directory or a Hub id@revision, to a model, its processor, and what identifies the weights."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError
from .model_folder import inside
from .progress import quiet_transformers
from .runtimes import DEFAULT_FOLDER, hash_weights
from .whitening import WHITENING_NAMES, Whitening

if TYPE_CHECKING:
    import numpy as np

    from .configuration_simclr import SimCLRConfig
    from .image_processing_simclr import SimCLRImageProcessor
    from .modeling_simclr import SimCLRModel

DEFAULT = "default"
#: What of a Hub repository is downloaded: never code, never a pickle.
_PATTERNS = ["config.json", "preprocessor_config.json", "*.safetensors", "model.safetensors.index.json"]


def load(name: str | os.PathLike[str] | None = None) -> "tuple[SimCLRModel, SimCLRImageProcessor]":
    """Load a SimCLR encoder, in eval mode, and the processor that belongs to it.

    Args:
        name: None or "default" (the checkpoint inside this package); a directory that `from_pretrained` or
            `simclr-hub convert` knows; an official checkpoint's name, such as "simclr-v2-r50-sk", which is downloaded
            and converted once; or a Hub id, "org/name" or "org/name@revision". Of a repository without our config a
            file of weights of a known layout is converted once; "org/name/file.pth" says which. For an official
            classifier's logits see `simclr_hub.checkpoints.official.official`.

    Raises:
        CheckpointError: there is no such model; its weights are damaged, incomplete, of another model, no safetensors
            or outside its folder; or a setting of it is out of bounds.
    """
    return load_folder(*locate(name))


def load_folder(directory: Path, source: str) -> "tuple[SimCLRModel, SimCLRImageProcessor]":
    """Load what `locate` found.

    Raises:
        CheckpointError: see `load`.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError

    from .image_processing_simclr import SimCLRImageProcessor
    from .modeling_simclr import SimCLRModel

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
    """Load the whitening that comes with a checkpoint; None if none does.

    Args:
        name: as for `load`.
        layer: "h" or "h+stage3"; there is none for others.

    Raises:
        CheckpointError: there is no such model, or its whitening is damaged.
    """
    if layer not in WHITENING_NAMES:
        return None
    path = locate(name)[0] / WHITENING_NAMES[layer]
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


def weights_hash(model: "SimCLRModel", *, with_projection: bool = False) -> str:
    """Return the SHA-256 over the architecture and every weight of the encoder (and of g), wherever they lie."""
    return hash_weights(architecture_of(model.config), hashed_weights(model, with_projection=with_projection))


def architecture_of(config: "SimCLRConfig") -> dict[str, Any]:
    """Return what of a config identifies the encoder."""
    from .configuration_simclr import SimCLRConfig

    names = sorted(set(SimCLRConfig.__annotations__) - _NOT_IDENTITY)
    # 1 and 1.0 are the same width.
    return {name: float(v) if isinstance(v := getattr(config, name), int) else v for name in names}


def hashed_weights(model: "SimCLRModel", *, with_projection: bool = False) -> "dict[str, np.ndarray]":
    """Return the weights of the encoder (and of g) by their names, float32, not copied where they are."""
    return {
        key: value.detach().float().cpu().contiguous().numpy()
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked") and (with_projection or key.startswith("encoder."))
    }


_NOT_IDENTITY = {
    "model_type",
    "projection_layers",
    "projection_type",
    "projection_dim",
    "projection_hidden_dim",
    "classifier_layer",
    "classifier_normalized",
    "sure_above",
    "image_size",
}


def locate(name: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Find the directory that holds a model, and its lasting name.

    Args:
        name: as for `load`.

    Raises:
        CheckpointError: there is no such model.
    """
    if name is None or name == DEFAULT:
        return DEFAULT_FOLDER, DEFAULT
    path = Path(name)
    if path.is_dir():
        return path, str(path.resolve())
    from .checkpoints.hub_weights import hub_weights, is_known, parse
    from .checkpoints.hub_weights import lasting_name as lasting_name_on_the_hub

    inside_one = isinstance(name, str) and "/" in name and os.path.isdir(name.partition("/")[0])  # a misspelt path
    parsed = parse(name) if isinstance(name, str) and not inside_one else None
    official_one = isinstance(name, str) and re.fullmatch(r"[\w.-]+(@[\w./-]+)?", name)
    if not parsed and not official_one:
        raise CheckpointError(
            f"{os.fspath(name)}: neither a directory, nor an official name, nor a Hub id such as org/name, "
            "org/name@revision or org/name/file.pth"
        )
    if not parsed:
        from .checkpoints.official import lasting_name, official

        directory = official(str(name))
        return directory, lasting_name(directory)
    repo, revision, file = parsed
    if not file and not is_known(repo):
        from .checkpoints.download import snapshot

        # The snapshot's folder is the commit: the name is resolved once, and offline works from the cache.
        folder = snapshot(repo, revision or None, _PATTERNS)
        if os.path.lexists(folder / "config.json"):
            return folder, f"{repo}@{folder.name}"
    directory = hub_weights(str(name))
    return directory, lasting_name_on_the_hub(directory)
