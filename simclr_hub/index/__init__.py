"""The similarity index: a directory on disk that holds photos' vectors and finds the nearest."""

from .similarity_index import SimilarityIndex
from .snapshot import Match
from .sync import SyncReport

__all__ = ["Match", "SimilarityIndex", "SyncReport"]
