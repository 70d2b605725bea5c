"""The similarity index: a directory on disk that holds photos' vectors and finds the nearest."""

from ..duplicates.find import DuplicateGroup
from .check import CheckReport, check_index
from .search.find import Match
from .similarity_index import SimilarityIndex
from .sync import SyncReport

__all__ = ["CheckReport", "DuplicateGroup", "Match", "SimilarityIndex", "SyncReport", "check_index"]
