"""What a sync did, in numbers that add up."""

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
        failed: photos that cannot be used; `SimilarityIndex.failures` says why.
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
