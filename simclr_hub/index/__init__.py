"""The similarity index: a directory on disk that holds photos' vectors and finds the nearest."""

from .check import check_index
from .duplicates import DuplicateGroup
from .match import Match
from .report import CheckReport, SyncReport
from .similarity_index import SimilarityIndex

__all__ = ["CheckReport", "DuplicateGroup", "Match", "SimilarityIndex", "SyncReport", "check_index"]
