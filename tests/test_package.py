"""The package as a whole: its table of contents, what importing it loads, its errors."""

import inspect
import subprocess
import sys

import simclr_hub
from simclr_hub import errors


def test_the_table_of_contents_is_frozen():
    assert simclr_hub.__all__ == [
        "Embedder",
        "Embedding",
        "Failure",
        "Match",
        "SimCLRBackbone",
        "SimCLRConfig",
        "SimCLRForImageClassification",
        "SimCLRHubError",
        "SimCLRImageProcessor",
        "SimCLRModel",
        "SimilarityIndex",
        "embed",
        "load",
    ]
    assert all(getattr(simclr_hub, name) for name in simclr_hub.__all__)


def test_importing_it_loads_nothing_heavy():
    # transformers itself loads accelerate where it is installed, so that one cannot be asked for here.
    heavy = "('faiss', 'datasets', 'sqlite3', 'google_crc32c')"
    code = f"import sys, simclr_hub; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_error_is_in_the_drawn_tree():
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, Exception):
            assert issubclass(error, errors.SimCLRHubError)
            assert name in errors.__doc__, name


def test_a_missing_extra_names_the_command():
    assert "pip install 'simclr-hub[train]'" in str(errors.MissingExtraError("datasets", "train"))
