"""Keeping an index: check, repair, forget, move, export and import."""
