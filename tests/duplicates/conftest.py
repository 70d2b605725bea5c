"""The index's fixtures and helpers."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "index"))

from index_fixtures import embedder, index, photos, settled, tmp_path  # noqa: E402

__all__ = ["embedder", "index", "photos", "settled", "tmp_path"]
