"""The index's fixtures."""

from index_fixtures import embedder, index, photos, settled, tmp_path

__all__ = ["embedder", "index", "photos", "settled", "tmp_path"]
