"""The similarity index: a directory on disk that holds photos' vectors and finds the nearest."""

from .report import SyncReport
from .similarity_index import SimilarityIndex
from .snapshot import Match

__all__ = ["Match", "SimilarityIndex", "SyncReport"]
