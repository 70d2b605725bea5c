"""Folders: every photo below one with its file stat, what was left out, what could not be listed.

The index, `embed`, training and evaluation read folders through this module alone. Names are bytes, since file names
need not be text. Nothing is followed and nothing is opened.
"""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .errors import RootUnavailableError
from .images import describe, is_image_name

SEPARATOR = os.fsencode(os.sep)
#: Times of files and clocks are trusted no finer than this (FAT stores even seconds).
GRANULARITY_NS = 2 * 10**9
#: Why whole folders are left out; told with the number of such folders.
TRASH, THUMBNAILS, SYSTEM = "in a trash folder", "in a folder of thumbnails or previews", "in a system folder"
_FOLDERS = {
    **dict.fromkeys(
        (".trash", ".trashes", "$recycle.bin", "recycler", "#recycle", "@recycle", ".recycle", ".recycle.bin")
        + (".dtrash", ".stversions"),
        TRASH,
    ),
    **dict.fromkeys(
        ("@eadir", ".thumbnails", ".thumbnail", ".thumbs", ".thumb", ".@__thumb", "@__thumb", ".xvpics"),
        THUMBNAILS,
    ),
    **dict.fromkeys(
        (".snapshot", ".snapshots", "#snapshot", "~snapshot", "@recently-snapshot", ".zfs", ".timeshift")
        + ("lost+found", "system volume information", "__macosx", "node_modules", "@tmp", ".stfolder", "found.000")
        + (".spotlight-v100", ".documentrevisions-v100", ".temporaryitems", ".fseventsd"),
        SYSTEM,
    ),
}  # fmt: skip
#: Bundles of photo programs: what they hold beside these folders is made of the photos in them.
_LIBRARIES = (".photoslibrary", ".photolibrary", ".migratedphotolibrary", ".aplibrary")
_ORIGINALS = ("originals", "masters")
_PREVIEWS = ".lrdata"  # Lightroom's


class FileStat(NamedTuple):
    """The size, times and inode of a file; compared for equality only, since clocks and copied times run backwards."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "FileStat":
        """Return what of a stat is compared."""
        ctime_ns = 0 if os.name == "nt" else stat.st_ctime_ns  # there it is the time of creation
        return cls(stat.st_size, stat.st_mtime_ns, ctime_ns, stat.st_ino)

    def settled(self, scan_time_ns: int) -> bool:
        """Return whether a change after this scan must change it; a file just written may change within one tick."""
        return max(self.mtime_ns, self.ctime_ns) + GRANULARITY_NS < scan_time_ns


@dataclass(frozen=True)
class Rules:
    """Rules for what is left out beside trash, thumbnails, what systems keep, and what is no photo by its name.

    Attributes:
        exclude: patterns, see `translate_pattern`: without a slash, for the name of a file or folder anywhere; with
            one, for the path below the root. A folder that matches is left out whole.
        include_hidden: enter folders and take files whose names begin with a dot.

    Raises:
        ValueError: a pattern that is none.
    """

    exclude: tuple[str, ...] = ()
    include_hidden: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.include_hidden, bool):
            raise ValueError(f"include_hidden={self.include_hidden!r}: give True or False")
        for pattern in self.exclude:
            try:
                if not isinstance(pattern, str) or not pattern.strip("/"):
                    raise ValueError("it is empty, or no text")
                re.compile(_translate(pattern))
            except (re.error, ValueError) as e:
                raise ValueError(f"exclude={pattern!r}: not a pattern: {e}") from None

    @cached_property
    def _excluded(self) -> re.Pattern[str] | None:
        return re.compile("|".join(f"(?:{_translate(p)})" for p in self.exclude), re.DOTALL) if self.exclude else None

    def why_left_out(self, path: bytes, parent: str, *, is_folder: bool) -> str | None:
        """Return why an entry is left out by its name, in words; None if it is not.

        Args:
            path: below the root.
            parent: absolute path of the folder that it is in, in lower case.
            is_folder: whether it is one.
        """
        name = os.path.basename(path)
        if name.startswith(b"._"):
            return "AppleDouble file"
        if is_folder and (reason := _kind_of_folder(os.fsdecode(name).lower(), parent)):
            return reason
        if name.startswith(b".") and not self.include_hidden:
            return "hidden"
        if self._excluded and self._excluded.match(_normal(os.fsdecode(path).replace(os.sep, "/"))):
            return "excluded"
        return None


def _translate(pattern: str) -> str:
    """Return an exclude pattern as a regular expression for paths below the root."""
    pattern = _normal(pattern.rstrip("/"))
    return translate_pattern(pattern.lstrip("/") if "/" in pattern else f"**/{pattern}")


def _normal(text: str) -> str:
    """Return one of the two ways in which Unicode writes letters with accents; file systems differ."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def translate_pattern(pattern: str) -> str:
    """Return a pattern for paths as a regular expression that matches in linear time, whatever the name.

    `*`, `?` and `[...]` stay within a folder, `**` stands for any folders, also none.
    """
    folders = pattern.split("/")
    runs: list[list[str]] = [[]]  # of folders between two `**`
    for at, folder in enumerate(folders):
        if folder != "**":
            runs[-1].append(_translate_name(folder))
        elif runs[-1] or at == 0:  # `**/**` is one
            runs.append([])
    first, *others = ("/".join(run) for run in runs)
    if not others:
        return rf"{first}\Z"
    *middle, last = others
    # The first place at which a run matches leaves the most for the rest: (?>...) never looks for another.
    between = "".join(rf"(?>(?:[^/]*/)*?{run}/)" for run in middle)
    end = rf"(?:[^/]*/)*{last}" if last else ".*"
    return rf"{first}{'/' if runs[0] else ''}{between}{end}\Z"


def _translate_name(pattern: str) -> str:
    """Return the pattern of one name."""
    parts, i = [""], 0  # between two stars
    while i < len(pattern):
        char = pattern[i]
        if char == "*":
            if parts[-1] or len(parts) == 1:
                parts.append("")
        elif char == "[" and (end := pattern.find("]", i + 2 + pattern.startswith("!", i + 1))) > 0:
            inside = pattern[i + 1 : end]
            no = inside.startswith("!")
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[no:]).replace("--", "-\\-")
            parts[-1] += f"(?!/)[{'^' if no else ''}{inside}]"
            i = end
        else:
            parts[-1] += "[^/]" if char == "?" else re.escape(char)
        i += 1
    first, *others = parts
    if not others:
        return first
    *middle, last = others
    return first + "".join(rf"(?>[^/]*?{part})" for part in middle) + f"[^/]*{last}"


def _kind_of_folder(name: str, parent: str) -> str | None:
    """Return why a folder is left out by its name and the path above it, both in lower case; None if it is not."""
    if reason := _FOLDERS.get(name):
        return reason
    if name.startswith(".trash-") or (name == "trash" and parent.endswith(os.path.join(".local", "share"))):
        return TRASH
    if name.endswith(_PREVIEWS):
        return THUMBNAILS
    if parent.endswith(_LIBRARIES) and name not in _ORIGINALS:
        return "in a photo library beside its originals"
    return None


def lies_aside(path: str) -> bool:
    """Return whether a file lies in a folder that a scan leaves out by default."""
    folders = path.lower().split(os.sep)[:-1]
    return any(
        folder.startswith(".") or _kind_of_folder(folder, os.sep.join(folders[:i])) for i, folder in enumerate(folders)
    )


@dataclass(frozen=True)
class Listing:
    """The result of a scan; paths are relative to the root."""

    photos: dict[bytes, FileStat]  # regular files whose suffix is an image's
    skipped: dict[str, int]  # how many other entries, by reason
    errors: dict[bytes, str]  # why folders (or files) could not be examined; what lies below them is unknown, not gone


def scan(
    root: bytes,
    folder: bytes = b"",
    *,
    rules: Rules | None = None,
    exclude: Collection[tuple[int, int]] = (),
    wanted: Callable[[bytes], bool] = is_image_name,
    add: Callable[[bytes, FileStat], object] | None = None,
) -> Listing:
    """List `folder`, which is relative to `root`, and everything below it.

    Args:
        root: absolute path. It and `folder` are entered whatever their names are.
        folder: relative path; b"" is the root itself.
        rules: what is left out.
        exclude: (device, inode) of directories that are not entered: the index's own.
        wanted: whether a file is listed, by its name.
        add: called with each photo, which the listing then does not hold.

    Raises:
        RootUnavailableError: the folder itself is not there, is no folder or cannot be listed.
    """
    rules = rules or Rules()
    photos: dict[bytes, FileStat] = {}
    add = add or photos.__setitem__
    skipped: Counter[str] = Counter()
    errors: dict[bytes, str] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        directory = os.path.join(root, current) if current else root
        parent = os.fsdecode(directory.rstrip(SEPARATOR)).lower()
        try:
            for entry in _entries(directory):
                path = os.path.join(current, entry.name)
                try:
                    if entry.is_symlink():
                        skipped["symbolic link"] += 1
                    elif entry.is_dir(follow_symlinks=False):
                        found = os.stat(entry.path, follow_symlinks=False)
                        if (found.st_dev, found.st_ino) in exclude:
                            skipped["the index itself"] += 1
                        elif reason := rules.why_left_out(path, parent, is_folder=True):
                            skipped[f"folder: {reason}"] += 1
                        else:
                            pending.append(path)
                    elif not wanted(entry.name):
                        skipped["not an image by its name"] += 1
                    elif reason := rules.why_left_out(path, parent, is_folder=False):
                        skipped[reason] += 1
                    else:
                        found = os.stat(entry.path, follow_symlinks=False)
                        if stat.S_ISREG(found.st_mode):
                            add(path, FileStat.of(found))
                        else:
                            skipped["not a regular file"] += 1
                except FileNotFoundError:
                    pass  # gone since it was listed: not there
                except OSError as e:
                    errors[path] = e.strerror or str(e)
        except OSError as e:
            if current == folder:
                name = describe(os.fsdecode(e.filename or root))
                raise RootUnavailableError(
                    f"{name}: {e.strerror or e}; nothing was changed. Is the disk plugged in and mounted?"
                ) from e
            errors[current] = e.strerror or str(e)
    return Listing(photos, dict(skipped), errors)


def scan_whole(
    folder: str | os.PathLike[str], rules: Rules | None = None, wanted: Callable[[bytes], bool] = is_image_name
) -> tuple[bytes, Listing]:
    """Return a folder's absolute path and its listing, of which nothing may be missing.

    Raises:
        RootUnavailableError: the folder, or one below it, cannot be listed.
    """
    root = os.fsencode(os.path.abspath(folder))
    try:
        listing = scan(root, rules=rules, wanted=wanted)
    except RootUnavailableError as e:
        cause = e.__cause__
        raise RootUnavailableError(f"{describe(folder)}: {getattr(cause, 'strerror', None) or cause}") from e
    for path, why in sorted(listing.errors.items()):
        raise RootUnavailableError(f"{describe(os.path.join(folder, os.fsdecode(path)))}: {why}")
    return root, listing


def _entries(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    """Yield its entries in the order of their names, so that runs compare."""
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)
