"""What a search runs on: files beside the store that are made from it, mapped, and searched."""
