"""The package as a whole: its table of contents, what importing it loads, its errors."""

import inspect
import pickle

import pytest

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


def test_its_names_are_there_although_each_is_imported_when_it_is_asked_for():
    assert set(simclr_hub.__all__) <= set(dir(simclr_hub))
    everything = {}
    exec("from simclr_hub import *", everything)
    assert everything["embed"] is simclr_hub.embed is simclr_hub.embedder.embed
    assert pickle.loads(pickle.dumps(simclr_hub.SimCLRConfig)) is simclr_hub.SimCLRConfig
    with pytest.raises(AttributeError, match="has no attribute 'Embeder'"):
        _ = simclr_hub.Embeder


def test_every_error_is_in_the_drawn_tree():
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, Exception):
            assert issubclass(error, errors.SimCLRHubError)
            assert name in errors.__doc__, name


def test_a_missing_extra_names_the_command():
    assert "pip install 'simclr-hub[train]'" in str(errors.MissingExtraError("datasets", "train"))
