"""A folder to observations: every image file below it with its stamp, what was skipped, what could not be listed.

Unusual: names are bytes; nothing is followed and nothing is opened; a folder that cannot be listed is an
observation, because the photos below it are then unknown, not gone.
"""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..errors import RootUnavailableError
from ..images import describe, is_image_name
from .records import Stamp


@dataclass(frozen=True)
class Listing:
    """What a scan saw; paths are relative to the root.

    Attributes:
        photos: regular files whose suffix is an image's.
        skipped: how many other entries, by reason.
        errors: folders (or files) that could not be examined, with the reason; what lies below them is unknown.
    """

    photos: dict[bytes, Stamp]
    skipped: dict[str, int]
    errors: dict[bytes, str]


def scan(root: bytes, folder: bytes = b"", *, exclude: Collection[tuple[int, int]] = ()) -> Listing:
    """List `folder`, which is relative to `root`, and everything below it.

    Args:
        root: absolute path.
        folder: relative path; b"" is the root itself.
        exclude: (device, inode) of directories that are not entered: the index's own.

    Raises:
        RootUnavailableError: the folder itself is not there, is no folder or cannot be listed.
    """
    photos: dict[bytes, Stamp] = {}
    skipped: Counter[str] = Counter()
    errors: dict[bytes, str] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            for entry in _entries(os.path.join(root, current) if current else root):
                path = os.path.join(current, entry.name)
                try:
                    if entry.is_symlink():
                        skipped["symbolic link"] += 1
                    elif entry.is_dir(follow_symlinks=False):
                        found = os.stat(entry.path, follow_symlinks=False)
                        if (found.st_dev, found.st_ino) in exclude:
                            skipped["the index itself"] += 1
                        else:
                            pending.append(path)
                    elif not is_image_name(entry.name):
                        skipped["not an image by its name"] += 1
                    else:
                        found = os.stat(entry.path, follow_symlinks=False)
                        if stat.S_ISREG(found.st_mode):
                            photos[path] = Stamp.of(found)
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


def _entries(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    """Its entries in the order of their names, so that runs compare."""
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)
