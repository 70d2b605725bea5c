"""A PyTorch file opened so that it can run no code, and the state_dict in it.

`torch.load` with `weights_only=True` makes tensors, numbers, text, lists and dicts, and refuses all else. It does not
compare a zip file's checksums, so that is done first: a flipped bit must not become a weight. Nor may a small file
become a large model, or take for ever: what is compressed, or names the same values or objects again and again, is
refused.
"""

import argparse
import os
import pickletools
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from pickletools import markobject, pydict, pylist, pyset
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError
from . import SUFFIXES

KNOWN = (
    "ResNets with torchvision's names (torchvision, simclr-converter, lightly, solo-learn, VISSL, MMSelfSup, "
    "FastSSL), the same as an nn.Sequential (lightly), SimCLRv2-Pytorch"
)
_LONGEST = 1000  # name of a tensor
_PICKLES = 5  # of torch's format before 1.6: three that tell the version, the content, the storages' keys
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # of trainers, around the weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of wrappers around the network


def is_pytorch(source: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a PyTorch file's; TensorFlow's may end in .ckpt, too, with an .index beside."""
    name = os.fspath(source)
    return name.endswith(SUFFIXES) and not os.path.exists(f"{name}.index") and not os.path.isdir(name)


def state_dict(path: Path, notes: list[str]) -> dict[str, Tensor]:
    """Load the tensors by name, without what trainers put around them and wrappers before their names.

    Args:
        path: the file; its suffix says of which kind it is.
        notes: what was left out is added.

    Raises:
        CheckpointError: unreadable, damaged, with objects that only code can make, or without plain tensors.
    """
    content = _load(path)
    others: list[str] = []
    for _ in range(8):  # a file may hold itself
        found = _unwrapped(content)
        if found is None:
            break
        others += [_named(key) for key in content if key not in found[0]]
        content = found[1]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: no state_dict is in it, but {type(content).__name__}; known: {KNOWN}")
    wrong = [
        f"{_named(name)} ({type(value).__name__})"
        for name, value in content.items()
        if not isinstance(value, Tensor) or not isinstance(name, str) or len(name) > _LONGEST
    ]
    if wrong:
        raise CheckpointError(f"{path}: no state_dict is in it, but {', '.join(wrong[:4])}; known: {KNOWN}")
    if others:
        notes.append(f"left out: {', '.join(others)}, which are no weights")
    tensors = dict(content)
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{path}: {name} is not a plain tensor of numbers")
        if tensor.untyped_storage().nbytes() < tensor.nbytes:  # a tiny file must not become a huge model
            raise CheckpointError(f"{path}: {name} repeats its values; save it with .contiguous()")
    if sum(tensor.nbytes for tensor in tensors.values()) > 4 * path.stat().st_size:  # some may be tied
        raise CheckpointError(f"{path}: most tensors share their values, as no trained network's do")
    return tensors


def _named(key: Any) -> str:
    """Return a key as a short text."""
    return key[:80] if isinstance(key, str) else f"a key of type {type(key).__name__}"


def _unwrapped(content: Any) -> tuple[Collection[str], dict[Any, Any]] | None:
    """Return the keys of the weights in what a trainer saved, and the weights; None if nothing is around them."""

    def inside(*keys: str) -> dict[Any, Any]:
        value = content
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return dict(value) if isinstance(value, Mapping) else {}

    if trunk := inside("classy_state_dict", "base_model", "model", "trunk"):  # VISSL
        heads = inside("classy_state_dict", "base_model", "model", "heads")
        return ["classy_state_dict"], trunk | {f"heads.{name}": value for name, value in heads.items()}
    if resnet := inside("resnet"):  # SimCLRv2-Pytorch
        return ["resnet", "head"], resnet | {f"head.{name}": value for name, value in inside("head").items()}
    key = next((key for key in _WRAPPERS if inside(key)), None)
    return None if key is None else ([key], inside(key))


def _load(path: Path) -> Any:
    """Load the file in a way that can run no code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if not zipfile.is_zipfile(path):  # torch's format before 1.6, or a damaged file
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    look(file)
            return _opened(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = any(member.compress_type for member in members)
            if packed or sum(member.file_size for member in members) > path.stat().st_size:
                raise CheckpointError(f"{path}: its content is compressed, which torch.save never does; save it again")
            _refuse_two_readings(path, archive)
            for member in members:
                if member.filename.lower().endswith(".pkl"):
                    with archive.open(member) as pickled:
                        look(pickled)
            damaged = archive.testzip()  # torch does not compare the checksums
        if damaged:
            raise CheckpointError(f"{path}: damaged: the checksum of {damaged} does not match; get the file again")
        return _opened(path, mmap=True)
    except CheckpointError:
        raise
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror or e}") from e
    except Exception as e:  # torch, pickle, zipfile and safetensors raise many kinds
        unsafe = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(e)) if "Weights only" in str(e) else None
        if unsafe:
            raise CheckpointError(
                f"{path}: it holds Python objects besides tensors ({unsafe[1]}), and loading those could run any "
                "code. If you trust it, make a safe file: in an environment of its own, load it with "
                "torch.load(..., weights_only=False) and save its state_dict with safetensors.torch.save_file"
            ) from e
        said = str(e).rpartition("WeightsUnpickler error: ")[2] or str(e)
        reason = next(iter(said.splitlines()), "")[:200] or type(e).__name__
        raise CheckpointError(f"{path}: damaged, incomplete or not a file of PyTorch: {reason}") from e


def _opened(path: Path, **options: Any) -> Any:
    # Trainers keep their command line beside the weights. A Namespace has no code of its own: making one runs none.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, **options)


def _refuse_two_readings(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse what torch's reader of zip files may take for other members than Python's, which are looked at.

    Raises:
        ValueError: bytes before the first member, a comment, or a name twice.
    """
    names = [member.filename.lower() for member in archive.infolist()]
    with path.open("rb") as file:
        first = file.read(4)
    if first != b"PK\3\4" or archive.comment or len(set(names)) < len(names):
        raise ValueError("a zip file that can be read in two ways")


# A pickle is inspected before it is opened: its opcodes tell how much work it announces. A few hundred bytes can name
# one tuple twice in the next, sixty times over: as a dict's key it is hashed 2^60 times in one call of C, which no
# Ctrl-C ends; nested 100,000 deep, the same call ends the process. So every object is given the size that it has when
# each part is counted wherever it is named.

#: Objects, each counted wherever it is named: a large network's file has less than a million.
MOST = 20_000_000
OPCODES, DEPTH = 5_000_000, 100

_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_GROWING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD"}


class _Object:
    """Describe what an opcode makes: how many objects, itself included, how deep, and a global's name."""

    __slots__ = ("depth", "name", "size")

    def __init__(self, size: int = 1, depth: int = 0, name: str = ""):
        self.size, self.depth, self.name = size, depth, name


def look(file: IO[bytes]) -> None:
    """Read one pickle to its end without opening it; the file stands behind it then.

    Raises:
        ValueError: it is malformed, or would take more time or memory than a file of weights does.
    """
    try:
        _look(file)
    except (IndexError, KeyError, AttributeError) as e:  # an empty stack, or what was never stored
        raise ValueError(f"a malformed pickle: {e}") from e


def _look(file: IO[bytes]) -> None:
    plain = _Object()  # of all numbers and texts
    stack: list[_Object | None] = []
    memo: dict[Any, _Object | None] = {}
    work = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count > OPCODES:
            raise ValueError(f"a pickle of more than {OPCODES:,} steps")
        if name in _PUT:
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            continue
        if name in _GET:
            stack.append(memo[argument])
            continue
        if name == "MARK":
            stack.append(None)
            continue
        parts: list[_Object] = []  # the last on the stack first
        below = opcode.stack_before
        if markobject in below:
            while (part := stack.pop()) is not None:
                parts.append(part)
            below = below[: below.index(markobject)]
        for _ in below:
            if (part := stack.pop()) is None:
                raise ValueError("a malformed pickle: a mark where an object should be")
            parts.append(part)
        if name in _CALLS and parts and _allocates(parts[-1].name):
            raise ValueError(f"it calls {parts[-1].name}, which takes memory that is not in the file")
        if name in _GROWING:
            made = parts.pop()
            if made is plain:
                raise ValueError("a malformed pickle: something is added to a number or a text")
        elif "GLOBAL" in name:
            made = _Object(name=str(argument or ""))
        elif parts or set(opcode.stack_after) & {pylist, pydict, pyset}:
            made = _Object()
        else:
            made = plain
        held = sum(part.size for part in parts)
        made.size += held
        made.depth = max(made.depth, *(part.depth + 1 for part in parts), 0)
        work += held
        if work > MOST or made.depth > DEPTH:
            raise ValueError(
                f"its objects are nested deeper than {DEPTH} or name one another more than {MOST:,} times, as no "
                "network's do"
            )
        stack.extend([made] * len(opcode.stack_after))


def _allocates(name: str) -> bool:
    """Tell whether calling this global ("module name") makes an object of any size that is asked for."""
    return name.endswith(("bytearray", "Tensor")) or (name.startswith("torch") and name.endswith("Storage"))
