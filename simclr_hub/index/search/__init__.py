"""Searching: a cache of the store in mapped files, and what is found in it."""
