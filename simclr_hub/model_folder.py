"""What of a model's folder is opened: JSON of a sane size and safetensors, and only what lies inside the folder.

Travels to the Hub as remote code, so it imports only the standard library.

transformers opens more than the weights' file: a pickle, what an adapter's file or a list of shards names, wherever
that is. A folder may be a stranger's, so these are refused here before transformers looks.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

#: Bytes of a JSON file; the names of 21,841 classes take less than one MiB.
JSON_LIMIT = 4 << 20
#: Levels of lists and keys in it; ours have three.
JSON_DEPTH = 8

_WEIGHTS = "model{}.safetensors"
_INDEX = "model.safetensors.index{}.json"
_SHARD = re.compile(r"model[\w.-]*\.safetensors")
# What transformers takes for weights or for another model's name, and this package never does.
_REFUSED = re.compile(r"adapter_config\.json|shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".bin.index.json")


def inside(path: Path) -> Path:
    """Return the path of a regular file whose bytes lie in its folder, or in the blobs of the Hub cache's repository.

    Raises:
        ValueError: a link that leads elsewhere, or no file.
    """
    folder, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    cached = next((p.parents[1] / "blobs" for p in (folder, *folder.parents) if p.parent.name == "snapshots"), folder)
    if not (target.is_relative_to(folder) or target.parent == cached):
        raise ValueError(f"{path}: a link to {target}, outside the model's folder; copy the file there")
    if not target.is_file():  # a pipe would be waited for
        raise ValueError(f"{path}: no file")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of keys and values, as small and flat as those of models.

    Raises:
        ValueError: it is not, or `inside`'s.
    """
    if (size := inside(path).stat().st_size) > JSON_LIMIT:
        raise ValueError(f"{path}: {size:,} bytes, more than the {JSON_LIMIT:,} that settings may take")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:  # also for digits without end
        raise ValueError(f"{path}: not valid JSON: {e}") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must have keys and values, not {type(found).__name__}")
    level: list[Any] = [found]
    for _ in range(JSON_DEPTH):
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, (dict, list))]
    if level:
        raise ValueError(f"{path}: nested deeper than {JSON_DEPTH} levels")
    return found


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors of a folder that holds a model, one or the shards that its index names.

    Args:
        folder: of `save_pretrained`.
        variant: as transformers has it: "fp16" in model.fp16.safetensors.

    Raises:
        ValueError: there are none, they are elsewhere, or transformers would follow or unpickle something there.
    """
    names = sorted(os.listdir(folder))
    for name in names:
        if _REFUSED.fullmatch(name):
            raise ValueError(f"{folder}: {name} is not read; remove it, or save the merged model with save_pretrained")
    infix = f".{variant}" if variant else ""
    single, index = _WEIGHTS.format(infix), _INDEX.format(infix)
    if single in names:
        return [inside(folder / single)]
    if index not in names:
        pickled = next((name for name in names if name.endswith(_PICKLES)), None)
        hint = f"; {pickled} may be a pickle, which is not opened: make one of it with `simclr-hub convert`"
        raise ValueError(f"{folder}: no {single} there" + (hint if pickled else ""))
    shards = read_json(folder / index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{folder / index}: no weight_map")
    for name in shards.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise ValueError(f"{folder / index}: names {name!r}, not a safetensors file beside it")
    return [inside(folder / name) for name in sorted(set(shards.values()))]
