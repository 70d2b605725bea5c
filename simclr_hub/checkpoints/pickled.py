"""A pickle looked at before it is opened: how much work it announces, counted from its opcodes without doing any.

Unusual: a few hundred bytes can name one tuple twice in the next, sixty times over. Opened as a dict's key it is
hashed 2^60 times, which no Ctrl-C ends, since one call of C does it; nested 100,000 deep, the same call ends the
process. So every object is given the size that it has when each part is counted wherever it is named.
"""

import pickletools
from pickletools import markobject, pydict, pylist, pyset
from typing import IO, Any

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
    """Return whether calling this global ("module name") makes an object of any size that is asked for."""
    return name.endswith(("bytearray", "Tensor")) or (name.startswith("torch") and name.endswith("Storage"))
