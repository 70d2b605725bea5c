import io

import datasets
import numpy as np
import pytest
from photo_formats import encoded, smooth
from PIL import Image

from simclr_hub import Embedder, Failure, embed, errors
from simclr_hub.images import FileBytes, load_image
from simclr_hub.sources import as_sources, dataset_images

FILES = [encoded(smooth(seed=i), "PNG") for i in range(3)]


def a_dataset(files=FILES, **columns):
    columns = {"image": [{"bytes": data, "path": None} for data in files], **columns}
    features = {name: datasets.Value("int64") for name in columns} | {"image": datasets.Image()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_data_set_is_its_images(tiny_model, tmp_path):
    expected = embed(FILES, model=tiny_model)
    data = a_dataset(label=[1, 2, 3])
    assert len(as_sources(data)) == 3
    for given in (data, data.to_iterable_dataset(), data["image"], list(data["image"]), data.with_format("numpy")):
        assert np.array_equal(embed(given, model=tiny_model), expected), type(given)
    path = tmp_path / "0.png"
    path.write_bytes(FILES[0])
    stored = datasets.Dataset.from_dict(
        {"image": [str(path)]}, features=datasets.Features({"image": datasets.Image()})
    )
    np.testing.assert_allclose(embed(stored, model=tiny_model), expected[:1], rtol=1e-5, atol=1e-6)


def test_a_data_set_s_files_are_decoded_here_with_their_hash():
    (row, *_) = dataset_images(a_dataset())
    assert row == {"bytes": FILES[0], "path": None}
    assert load_image(row).content_hash == load_image(FILES[0]).content_hash
    with pytest.raises(errors.UnsupportedImageError, match="row of a data set"):
        load_image({"bytes": b"text", "path": None})
    with pytest.raises(errors.UnsupportedImageError, match="a.png"):
        load_image({"bytes": b"text", "path": "a.png"})
    with pytest.raises(errors.UnreadableImageError):
        load_image({"bytes": None, "path": None})
    with pytest.raises(errors.UnreadableImageError, match="no such file"):
        load_image({"bytes": None, "path": "none.png"})
    with pytest.raises(TypeError, match="dict is not an image"):
        load_image({"image": FILES[0]})


def test_a_broken_row_is_one_failure(tiny_model):
    items = list(Embedder(tiny_model).stream(dataset_images(a_dataset([FILES[0], b"text", FILES[1]]))))
    assert [isinstance(item, Failure) for item in items] == [False, True, False]


def test_data_sets_without_one_image_column_are_refused():
    with pytest.raises(ValueError, match="no image column, only label.*dataset\\[NAME\\]"):
        as_sources(datasets.Dataset.from_dict({"label": [1]}))
    rows = [{"bytes": data, "path": None} for data in FILES]
    kinds = datasets.Features(dict.fromkeys(("image", "other"), datasets.Image()))
    two = datasets.Dataset.from_dict({"image": rows, "other": rows}, features=kinds)
    with pytest.raises(ValueError, match="image columns image, other"):
        as_sources(two)


def test_what_is_one_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(FILES[0])
    with path.open("rb") as file:
        one = [
            path, str(path), FILES[0], bytearray(FILES[0]), FileBytes("a", FILES[0]), file, io.BytesIO(FILES[0]),
            Image.new("RGB", (2, 2)), np.zeros((2, 2, 3)), {"bytes": FILES[0], "path": None}, "https://a/b.png",
            "https://a/b.zip", "none.png",
        ]  # fmt: skip
        for source in one:
            assert as_sources(source) == [source] or as_sources(source)[0] is source


def test_a_folder_is_sorted_by_path_whatever_the_disk_lists_first(tmp_path):
    for name in ("b.png", "a/2.png", "c/1.png", "a/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(FILES[0])
    names = [path.relative_to(tmp_path).as_posix() for path in as_sources(tmp_path)]
    assert names == ["a/1.png", "a/2.png", "b.png", "c/1.png"]
