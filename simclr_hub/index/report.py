"""What a sync did, in numbers that add up; what a check found and a repair saved."""

from dataclasses import dataclass, field


@dataclass
class SyncReport:
    """What a sync found and did; found = embedded + unchanged + renamed + copied + failed.

    Attributes:
        found: photos that are there.
        embedded: new content.
        unchanged: the content that was recorded under the same path.
        renamed: content of a photo whose file is gone: the same photo under another name.
        copied: content that the index knows, of a photo that is still there or was once.
        failed: photos that cannot be used; `SimilarityIndex.failures` says why. Those that could not be read but were
            known before stay as they were, also in searches.
        vanished: photos that went between listing and reading; not counted as found.
        skipped: entries that are no photos, by reason.
        missing: photos recorded below the folder that are not there; kept until `prune`.
        came_back: photos among the found that were missing before.
        listing_errors: folders that could not be listed, with the reason; their photos stay as they were.
        seconds: how long it took.
    """

    found: int = 0
    embedded: int = 0
    unchanged: int = 0
    renamed: int = 0
    copied: int = 0
    failed: int = 0
    vanished: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    came_back: int = 0
    listing_errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class RepairReport:
    """What became of a damaged store.

    Attributes:
        saved: rows copied into the new store, by table.
        lost_photos: photos that were not saved; the next sync of their folders reads them again.
        kept_as: the damaged file, under its new name.
    """

    saved: dict[str, int]
    lost_photos: int
    kept_as: str


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        path: the index.
        verified: what was found right, and how many of it.
        problems: what is wrong with the index; empty if it is sound.
        unverified: what could not be checked or was not asked for, and why.
        notes: what mends itself, or is about the photos and not about the index.
        repair: what a repair saved and lost; None if there was none.
        photos: by a deep check: how many are the "same", "changed", "missing", "unreadable" or "damaged".
        damaged_photos: whose content changed while size and times did not: a disk or a program damaged them.
    """

    path: str
    verified: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repair: RepairReport | None = None
    photos: dict[str, int] = field(default_factory=dict)
    damaged_photos: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with the index."""
        return not self.problems
