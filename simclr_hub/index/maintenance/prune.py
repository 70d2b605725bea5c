"""Forget the photos that are missing: the one place where the index drops something."""

import os

from ...errors import PruneRefusedError
from ...images import describe
from ..store import Store

#: Refused when more of the photos than this are missing: a disk may be unplugged.
SHARE = 0.1


def forget_missing(store: Store, *, force: bool = False) -> int:
    """Drop the photos that are missing, and the vectors that no photo has; how many photos; inside `Store.writing`.

    Args:
        store: where.
        force: whatever is missing; and also the photos of roots that were not there at their last sync and still are
            not, since no sync can mark those.

    Raises:
        PruneRefusedError: more than a tenth is missing, or failed after it had a vector, or the last listing of a root
            with photos failed.
    """
    photos, roots = store.photos(), store.roots()
    used = {photo.root_id for photo in photos}
    lost = {root.id for root in roots.values() if root.listing == "unavailable" and not os.path.isdir(root.path)}
    doomed = [p for p in photos if p.state == "missing" or (force and p.root_id in lost)]
    if not force:
        for root in roots.values():
            if root.id in used and root.listing != "ok":
                raise PruneRefusedError(
                    f"{describe(os.fsdecode(root.path))} could not be listed in full at its last sync; "
                    "sync it again, or force the pruning"
                )
        # Vectors of photos that failed since: what they held once is not to be lost for a disk that answered wrongly.
        failed = sum(p.state == "failed" for p in photos)
        orphans = min(failed, store.unused_vectors())
        if len(doomed) + orphans > SHARE * len(photos):
            unread = f" and {orphans:,} can no longer be decoded" if orphans else ""
            raise PruneRefusedError(
                f"{len(doomed):,} of {len(photos):,} photos are missing{unread}, more than {SHARE:.0%}: "
                "is a disk unplugged or failing? Sync again, or force the pruning"
            )
    with store.transaction():
        for photo in doomed:
            store.forget(photo)
        store.forget_vectors()
        kept = {photo.root_id for photo in store.photos()}
        for root in roots.values():
            if root.id not in kept:
                store.forget_root(root)
    return len(doomed)
