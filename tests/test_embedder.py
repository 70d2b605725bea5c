import threading

import numpy as np
import pytest
import torch
from PIL import Image

from simclr_hub import Embedder, Embedding, Failure, embed, errors, load
from simclr_hub.fast import fast_copy
from simclr_hub.images import load_image
from simclr_hub.signature import picture_signature
from simclr_hub.sources import folder_images


def test_rows_equal_the_eager_model(photos, tiny_dir):
    model, processor = load(tiny_dir)
    paths = folder_images(photos)
    rows = embed(paths, model=tiny_dir)
    for path, row in zip(paths, rows, strict=True):
        pixels = processor(images=Image.open(path), return_tensors="pt").pixel_values
        with torch.inference_mode():
            expected = model(pixels).pooler_output[0].numpy()
        assert np.abs(row - expected).max() / np.abs(expected).max() < 1e-5


def test_the_fast_copy_drifts_by_less_than_a_millionth(tiny_model):
    x = torch.rand(4, 3, 64, 64)
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    fast = fast_copy(tiny_model, torch.device("cpu"), torch.float32)
    expected, got = tiny_model(x).pooler_output, fast(x).pooler_output
    assert (expected - got).abs().max() / expected.abs().max() < 1e-6
    assert all(torch.equal(before[k], v) for k, v in tiny_model.state_dict().items())


def test_every_form_of_input_gives_the_same_rows(photos, tiny_model):
    embedder_rows = embed(photos, model=tiny_model)  # a folder
    paths = folder_images(photos)
    assert [p.relative_to(photos).as_posix() for p in paths] == [
        "0.jpg", "1.jpg", "2.jpg", "3.jpg", "below/4.png", "below/5.png"
    ]  # fmt: skip
    images = [Image.open(p) for p in paths]
    for given in (paths, iter(paths), (str(p) for p in paths), [p.read_bytes() for p in paths], images):
        assert np.array_equal(embed(given, model=tiny_model), embedder_rows)
    one = embed(paths[0], model=tiny_model)
    np.testing.assert_allclose(one, embedder_rows[:1], rtol=1e-5, atol=1e-6)
    batch = np.zeros((2, 40, 30, 3), np.uint8)
    assert embed(batch, model=tiny_model).shape == (2, 256)
    assert embed(torch.zeros(2, 3, 40, 30), model=tiny_model).shape == (2, 256)
    assert embed([], model=tiny_model).shape == (0, 256)


def test_failures_are_values_in_their_place(photos, tiny_model):
    good = folder_images(photos)
    sources = [good[0], "no.jpg", b"text", good[1], None, good[2]]
    for batch_size in (1, 2, 6):
        items = list(Embedder(tiny_model, batch_size=batch_size).stream(sources))
        assert [i.position for i in items] == list(range(6))
        assert [i.source for i in items] == sources
        assert [type(i) for i in items] == [Embedding, Failure, Failure, Embedding, Failure, Embedding]
    assert isinstance(items[1].error, errors.UnreadableImageError)
    with pytest.raises(errors.UnreadableImageError, match="no.jpg"):
        embed(sources, model=tiny_model)


def test_an_endless_stream_is_read_only_a_little_ahead(tiny_model):
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield np.zeros((8, 8, 3), np.uint8)

    before = threading.active_count()
    stream = Embedder(tiny_model, batch_size=2, workers=2).stream(endless())
    for _ in range(20):
        next(stream)
    assert pulled <= 20 + 2 * 2 + 2 + 2
    stream.close()
    assert threading.active_count() == before


def test_layers_and_lengths(tiny_model):
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    from simclr_hub.image_processing_simclr import transform

    out = tiny_model(transform(pixels[None], 64), output_projections=True)
    expected = {"h": out.pooler_output, "g1": out.projections[0], "g2": out.projections[1], "z": out.projections[1]}
    for layer, value in expected.items():
        embedder = Embedder(tiny_model, layer=layer)
        item = next(iter(embedder.stream([image])))
        np.testing.assert_allclose(item.vector, value[0].detach().numpy(), rtol=1e-4, atol=1e-5)
        assert embedder.dim == len(item.vector) == value.shape[1]
    assert np.linalg.norm(embed(image, model=tiny_model, normalize=True)) == pytest.approx(1)
    with pytest.raises(ValueError, match="g3.*h, g1, g2, z"):
        Embedder(tiny_model, layer="g3")


def test_the_fingerprint_tells_what_changes_vectors(tiny_model, tiny_dir):
    base = Embedder(tiny_model).fingerprint
    same = Embedder(tiny_dir).fingerprint
    assert {k: v for k, v in base.items() if k != "model"} == {k: v for k, v in same.items() if k != "model"}
    changed = {
        "layer": {"layer": "z"},
        "precision": {"dtype": torch.bfloat16},
        "preprocessing": {"exact": True},
        "normalized": {"normalize": True},
    }
    for key, arguments in changed.items():
        assert Embedder(tiny_model, **arguments).fingerprint[key] != base[key]
    other = type(tiny_model)(tiny_model.config)
    assert Embedder(other).fingerprint["weights"] != base["weights"]


def test_arguments_are_checked(tiny_model):
    with pytest.raises(ValueError, match="batch_size=0"):
        Embedder(tiny_model, batch_size=0)


def test_folders_without_images_are_an_error(tmp_path):
    with pytest.raises(errors.UnreadableImageError, match="no image files"):
        embed(tmp_path)


def test_an_error_of_the_source_itself_is_not_swallowed(tiny_model):
    def broken():
        yield np.zeros((8, 8, 3), np.uint8)
        raise RuntimeError("the database went away")

    with pytest.raises(RuntimeError, match="database"):
        list(Embedder(tiny_model).stream(broken()))


def test_what_an_image_tells_of_itself_travels_with_its_vector(photos, tiny_model):
    path = folder_images(photos)[0]
    (plain,) = Embedder(tiny_model).stream([path])
    (signed,) = Embedder(tiny_model).stream([path], signatures=True)
    assert (plain.info, plain.signature) == (load_image(path).info, b"")
    with Image.open(path) as opened:
        assert plain.info["format"] == "JPEG" and plain.info["width"] == opened.width
    assert signed.signature == picture_signature(load_image(path).pixels)
