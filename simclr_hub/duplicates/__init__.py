"""Duplicates among the photos of an index: the same bytes, the same picture, and similar pictures."""
