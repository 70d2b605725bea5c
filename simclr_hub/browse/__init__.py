"""A local page to look with: a server of an index's photos, see docs/browse.md."""
