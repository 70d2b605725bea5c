"""At home in transformers: pipelines on a saved directory, and a model that compiles and exports to the same h."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SAMPLE_PHOTOS, randomized, tiny_config
from transformers import pipeline

from simclr_hub import SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel, embed, load

PHOTO = SAMPLE_PHOTOS / "cat_1.jpg"


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory):
    """A model with g and a classifier, and its processor."""
    directory = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = tiny_config(num_labels=3, classifier_layer=1, id2label={0: "bird", 1: "cat", 2: "hat"})
    model = randomized(SimCLRForImageClassification(config))
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(directory)
    SimCLRImageProcessor(size=64).save_pretrained(directory)
    return directory


def test_pooled_feature_extraction_pipeline_gives_h(classifier_dir):
    pooled = pipeline("image-feature-extraction", model=str(classifier_dir))(str(PHOTO), pool=True)
    np.testing.assert_allclose(pooled, embed(PHOTO, model=str(classifier_dir)), rtol=1e-5, atol=1e-6)


def test_image_classification_pipeline_names_the_labels(classifier_dir):
    results = pipeline("image-classification", model=str(classifier_dir))(str(PHOTO))
    model = SimCLRForImageClassification.from_pretrained(classifier_dir).eval()
    pixels = SimCLRImageProcessor.from_pretrained(classifier_dir)(images=Image.open(PHOTO), return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**pixels).logits.softmax(1)[0]
    expected = {model.config.id2label[i]: p.item() for i, p in enumerate(probabilities)}
    assert {r["label"]: r["score"] for r in results} == pytest.approx(expected, abs=1e-6)
    assert expected["cat"] != pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize("selective", [False, True])
def test_exports_with_any_batch_to_the_same_h(selective):
    model = randomized(SimCLRModel(tiny_config(sk_ratio=0.0625 if selective else 0.0)))
    pixels = torch.rand(3, 3, 48, 48)
    program = torch.export.export(model, (pixels[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pixels).pooler_output, model(pixels).pooler_output)


def _assert_compiled_gives_h(directory, backend):
    model, _ = load(directory)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for size in (64, 51):  # an even and an odd map pad differently
        pixels = torch.rand(2, 3, size, size)
        with torch.no_grad():
            h = model(pixels).pooler_output
            torch.testing.assert_close(compiled(pixels).pooler_output, h, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiles_as_one_graph_to_the_same_h(classifier_dir):
    _assert_compiled_gives_h(classifier_dir, "aot_eager")


@pytest.mark.slow
def test_compiled_code_gives_the_same_h(classifier_dir):
    _assert_compiled_gives_h(classifier_dir, "inductor")
