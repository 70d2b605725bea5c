import copy
import multiprocessing
import pickle
import threading
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub import Embedder, Embedding, Failure, SimCLRImageProcessor, embed, errors, load
from simclr_hub import embedder as embedder_module
from simclr_hub.images import load_image
from simclr_hub.signature import picture_signature
from simclr_hub.sources import folder_images
from simclr_hub.whitening import Whitening


def test_rows_equal_the_eager_model(photos, tiny_dir):
    model, processor = load(tiny_dir)
    paths = folder_images(photos)
    rows = embed(paths, model=tiny_dir)
    for path, row in zip(paths, rows, strict=True):
        pixels = processor(images=Image.open(path), return_tensors="pt").pixel_values
        with torch.inference_mode():
            expected = model(pixels).pooler_output[0].numpy()
        assert np.abs(row - expected).max() / np.abs(expected).max() < 1e-5


def test_the_processor_s_crop_is_the_embedder_s(photos, tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "m")
    processor = SimCLRImageProcessor(size=64, crop_proportion=0.5)
    processor.save_pretrained(tmp_path / "m")
    pixels = processor(images=Image.open(photos / "0.jpg"), return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = tiny_model(pixels).pooler_output[0].numpy()
    (row,) = embed(photos / "0.jpg", model=tmp_path / "m")
    assert np.abs(row - expected).max() / np.abs(expected).max() < 1e-5


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
    assert pulled <= 20 + 2 * (2 + 2)  # a batch for each worker, one more ready, one that is given out
    stream.close()
    assert threading.active_count() == before


def test_layers_and_lengths(tiny_model):
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    from simclr_hub.pixels import transform

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


def test_the_head_s_weights_count_where_it_is_used(tiny_model):
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.projection.layers[0].dense.weight.mul_(2)
    weights = [[Embedder(m, layer=layer).fingerprint["weights"] for m in (tiny_model, other)] for layer in ("h", "z")]
    assert weights[0][0] == weights[0][1] and weights[1][0] != weights[1][1]


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


def noise(n, size=80):
    return list(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("runtime", [None, "torch", "onnxruntime"])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (1, 3), (4, 3), (32, 2)])
def test_the_rows_are_the_same_whatever_runs_the_model(tiny_model, runtime, batch_size, workers):
    images = noise(11)
    plain = Embedder(tiny_model, runtime="torch", batch_size=11)
    expected = np.stack([item.vector for item in plain.stream(images)])
    embedder = Embedder(tiny_model, runtime=runtime, batch_size=batch_size, workers=workers)
    items = list(embedder.stream(images))
    assert [item.position for item in items] == list(range(11))
    assert np.abs(np.stack([item.vector for item in items]) - expected).max() / np.abs(expected).max() < 1e-5
    assert embedder.fingerprint == plain.fingerprint


def test_slow_images_do_not_change_the_order(tiny_model, monkeypatch):
    whole = embedder_module.load_image

    def slow(source, **options):
        time.sleep(0.03 * (source[0, 0, 0] % 3 == 0))
        return whole(source, **options)

    images = noise(12)
    expected = embed(images, model=tiny_model)
    monkeypatch.setattr(embedder_module, "load_image", slow)
    embedder = Embedder(tiny_model, batch_size=1, workers=4)
    for position, item in enumerate(embedder.stream(images)):
        assert item.position == position and item.source is images[position]
        np.testing.assert_allclose(item.vector, expected[position], rtol=1e-4, atol=1e-5)


def test_one_batch_alone_gets_all_cores_and_many_one_each(tiny_model, monkeypatch):
    embedder = Embedder(tiny_model, batch_size=8, workers=2)
    run = embedder._run

    class Watched:
        has_own_thread = False

        def __call__(self, pixels, *, alone: bool = False):
            asked.append((alone, threading.current_thread() is threading.main_thread()))
            return run(pixels, alone=alone)

    asked: list = []
    monkeypatch.setattr(embedder, "_run", Watched())
    image = noise(1)[0]
    assert len(list(embedder.stream([image] * 8))) == 8 and asked == [(True, True)]
    asked.clear()
    assert len(list(embedder.stream([image] * 9))) == 9 and asked == [(False, False)] * 2


def test_each_thread_of_many_uses_one_core(tiny_model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        embedder_module, "load_image", lambda x, **k: (seen.append(torch.get_num_threads()), load_image(x, **k))[1]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(Embedder(tiny_model, workers=2).stream(noise(3)))
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1]


def test_new_threads_get_their_number_of_threads_back(tiny_model):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(Embedder(tiny_model, workers=2).stream(noise(3)))
        found = []
        thread = threading.Thread(target=lambda: found.append((torch.ones(9).sum(), torch.get_num_threads())[1]))
        thread.start()
        thread.join()
        assert found == [3] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def large_photo(tmp_path_factory):
    """A JPEG and a PNG of the same pixels, 1200 x 900."""
    folder = tmp_path_factory.mktemp("large")
    sample = Image.open(SAMPLE_PHOTOS / "cat_1.jpg").convert("RGB").resize((1200, 900), Image.Resampling.BICUBIC)
    noisy = np.asarray(sample, np.float32) + np.random.default_rng(0).normal(0, 6, (900, 1200, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "photo.jpg", quality=95)
    Image.open(folder / "photo.jpg").save(folder / "photo.png")
    return folder


def test_large_jpegs_are_decoded_smaller_with_a_known_drift(tiny_model, large_photo, monkeypatch):
    shapes = []
    whole = embedder_module.transform
    monkeypatch.setattr(
        embedder_module, "transform", lambda x, *a, **k: (shapes.append(tuple(x.shape[2:])), whole(x, *a, **k))[1]
    )
    jpeg, png = (embed(large_photo / name, model=tiny_model)[0] for name in ("photo.jpg", "photo.png"))
    assert shapes == [(225, 300), (900, 1200)]
    assert 0 < 1 - cosine(jpeg, png) < 1e-3
    item = next(iter(Embedder(tiny_model).stream([large_photo / "photo.jpg"])))
    assert (item.info["width"], item.info["height"]) == (1200, 900)
    assert np.array_equal(item.vector, embed((large_photo / "photo.jpg").read_bytes(), model=tiny_model)[0])


def test_exact_decodes_every_pixel(tiny_model, large_photo):
    exact = [embed(large_photo / name, model=tiny_model, exact=True)[0] for name in ("photo.jpg", "photo.png")]
    assert np.array_equal(*exact)
    processor = SimCLRImageProcessor(size=64, exact=True)
    pixels = processor(images=Image.open(large_photo / "photo.jpg"), return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = tiny_model(pixels).pooler_output[0].numpy()
    assert np.abs(exact[0] - expected).max() / np.abs(expected).max() < 1e-5
    decoders = {flag: Embedder(tiny_model, exact=flag).fingerprint["decoder"] for flag in (True, False)}
    assert decoders == {True: "pillow, sRGB", False: "pillow, sRGB, JPEG reduced"}


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_reduced_decoding_leaves_twice_the_input_in_the_crop(tiny_dir, large_photo, monkeypatch):
    asked = []

    def load(source, *, reduce_to):
        asked.append(reduce_to)
        return load_image(source, reduce_to=reduce_to)

    monkeypatch.setattr(embedder_module, "load_image", load)
    embed([large_photo / "photo.jpg"], model=tiny_dir)
    (side,) = asked
    assert 0.875 * (side - 2) < 2 * 64 < 0.875 * side


def test_an_embedder_is_called_as_embed_is(photos, tiny_model):
    expected = embed(photos, model=tiny_model, layer="z")
    embedder = Embedder(tiny_model, layer="z")
    assert np.array_equal(embedder(photos), expected)
    assert embedder(photos / "0.jpg").shape == (1, embedder.dim)
    assert embedder([]).shape == (0, embedder.dim)


@pytest.mark.parametrize("call", ["embed", "Embedder"])
def test_what_cannot_be_used_is_skipped_when_asked(photos, tiny_model, call):
    expected = embed(photos, model=tiny_model)
    for i in range(5):
        (photos / f"broken {i}.jpg").write_bytes(b"no image")
    embedder = Embedder(tiny_model)

    def skipping(images):
        if call == "embed":
            return embed(images, model=tiny_model, on_error="skip")
        return embedder(images, on_error="skip")

    with pytest.warns(
        UserWarning, match="^5 of 11 images were left out: .*broken 0.*broken 1.*broken 2.*; ...$"
    ) as told:
        vectors, paths = skipping(photos)
    assert told[0].filename == __file__ and "broken 3" not in str(told[0].message)
    assert paths == [path for path in folder_images(photos) if "broken" not in path.name]
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(errors.UnsupportedImageError, match="broken 0"):
        embed(photos, model=tiny_model)
    vectors, paths = skipping(paths[:2])  # without a warning
    assert len(vectors) == len(paths) == 2
    with pytest.warns(UserWarning, match="^1 of 1 images were left out: [^;]*$"):
        vectors, paths = skipping([b"no image"])
    assert vectors.shape == (0, 256) and paths == []


def test_of_an_archive_the_members_names_are_kept(photos, tiny_model, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("0.jpg", "1.jpg"):
            archive.write(photos / name, name)
        archive.writestr("2.jpg", b"no image")
    with pytest.warns(UserWarning, match="1 of 3 images"):
        vectors, names = embed(tmp_path / "a.zip", model=tiny_model, on_error="skip")
    assert [str(name).rpartition("/")[2] for name in names] == ["0.jpg", "1.jpg"] and len(vectors) == 2


def test_another_way_with_errors_is_refused_before_the_model_is_loaded(tiny_model):
    with pytest.raises(ValueError, match="on_error='ignore'"):
        embed([], model="no such model", on_error="ignore")
    with pytest.raises(ValueError, match="on_error=None"):
        Embedder(tiny_model)([], on_error=None)


@pytest.mark.parametrize("settings", [{}, {"layer": "h+stage3"}, {"normalize": True}, {"dtype": torch.float16}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_failures_of_their_rows(photos, tiny_model, settings, value, monkeypatch):
    embedder = Embedder(tiny_model, batch_size=3, **settings)
    run = embedder._run

    def spoilt(self, pixels, *, alone=False):
        vectors = run(pixels)
        vectors[1, 5] = value
        return vectors

    monkeypatch.setattr(embedder, "_run", type("Spoilt", (), {"has_own_thread": False, "__call__": spoilt})())
    paths = folder_images(photos)
    items = list(embedder.stream(paths))
    assert [type(item) for item in items] == [Embedding, Failure, Embedding] * 2
    for item in (items[1], items[4]):
        assert str(item.error).startswith(f"{item.source}: its features are not finite (model in memory, float")
        assert isinstance(item.error, errors.CorruptImageError)
    with pytest.raises(errors.ImageError, match="1.jpg: its features are not finite"):
        embedder(photos)


def in_another_process(embedder, images):
    return embedder(images), embedder.fingerprint, type(embedder._run).__name__


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_an_embedder_can_be_pickled(photos, tiny_model, runtime):
    embedder = Embedder(tiny_model, layer="h+stage3", batch_size=2, workers=2, runtime=runtime)
    rows = embedder(photos)
    again = pickle.loads(pickle.dumps(embedder))
    assert again.fingerprint == embedder.fingerprint and np.array_equal(again(photos), rows)
    assert np.array_equal(copy.deepcopy(embedder)(photos), rows)


@pytest.mark.slow
def test_an_embedder_gives_the_same_in_another_process(photos, tiny_model, tiny_dir):
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        for model in (tiny_dir, tiny_model):
            embedder = Embedder(model, batch_size=2, workers=2)
            found = pool.submit(in_another_process, embedder, photos).result()
            assert np.array_equal(found[0], embedder(photos))
            assert found[1:] == (embedder.fingerprint, type(embedder._run).__name__)


def test_one_that_whitens_travels_too_and_its_twin_shares_the_model(photos, tiny_model):
    features = np.random.default_rng(0).normal(size=(600, 256)).astype(np.float32)
    embedder = Embedder(tiny_model, whiten=Whitening.learn(features, shrinkage=0.1, learnt_from="numbers"))
    plain = embedder.unwhitened()
    assert plain._run is embedder._run
    assert np.array_equal(pickle.loads(pickle.dumps(embedder))(photos), embedder(photos))


@pytest.mark.parametrize("device", ["nope", "cuda:99", "xla"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here: ") as error:
        Embedder(device=device)
    assert len(str(error.value)) < 400
