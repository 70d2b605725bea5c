"""The similarity index: a directory on disk that holds photos' vectors and finds the nearest."""

from ..duplicates.find import DuplicateGroup
from .maintenance.check import check_index
from .report import CheckReport, SyncReport
from .search.match import Match
from .similarity_index import SimilarityIndex

__all__ = ["CheckReport", "DuplicateGroup", "Match", "SimilarityIndex", "SyncReport", "check_index"]
