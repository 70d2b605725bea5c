"""The fixtures of parts."""

from parts_fixtures import made, many, settled, shards, table

__all__ = ["made", "many", "settled", "shards", "table"]
