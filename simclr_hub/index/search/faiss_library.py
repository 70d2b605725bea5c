"""FAISS, imported when it is first needed."""

import functools
import os
import warnings
from typing import Any


@functools.cache
def faiss() -> Any:
    """The module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's, about types without __module__
        import faiss
    # One query runs on one thread; batches gain little past a few.
    faiss.omp_set_num_threads(min(faiss.omp_get_max_threads(), os.cpu_count() or 1, 8))
    return faiss
