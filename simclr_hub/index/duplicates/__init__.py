"""Files that show the same: of the same bytes, of the same picture, and similar ones."""
