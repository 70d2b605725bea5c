"""`whiten`, `index --no-whiten` and `--layer`, and what `status` says, from the command line."""

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub import SimilarityIndex
from simclr_hub.whitening import Whitening


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 parts of the sample photos."""
    folder, draw = tmp_path_factory.mktemp("crops"), Random(0)
    paths = sorted(SAMPLE_PHOTOS.glob("*.jpg"))
    for i in range(130):
        with Image.open(paths[i % len(paths)]) as image:
            x, y = draw.randrange(image.width - 64), draw.randrange(image.height - 64)
            image.crop((x, y, x + 64, y + 64)).save(folder / f"{i}.png")
    return folder


def test_an_index_without_whitening_says_how_to_get_it(run, photos):
    assert run("index", photos, "--no-whiten")[0] == 0
    out = run("status", "photos.index")[1]
    assert "whitening    none; `simclr-hub whiten photos.index` gives better matches and reads no photo" in out
    assert json.loads(run("status", "photos.index", "--json")[1])["whitening"] is None
    shutil.rmtree(photos)
    code, out, _ = run("whiten", "photos.index")
    assert (code, out) == (0, "6 photos, whitened: learnt from 10,000 images (training images of tiny-imagenet)\n")
    told = json.loads(run("status", "photos.index", "--json")[1])
    assert told["whitening"]["dim"] == 248 and "learnt_from training images" in run("status", "photos.index")[1]
    assert json.loads(run("whiten", "photos.index", "--json")[1]) == {"photos": 6, "whitening": told["whitening"]}
    assert run("whiten", "photos.index", "--off")[1] == "6 photos, not whitened\n"
    assert json.loads(run("status", "photos.index", "--json")[1])["whitening"] is None


def test_it_is_on_by_default_and_options_that_contradict_an_index_are_refused(run, photos):
    assert run("index", photos)[0] == 0
    assert json.loads(run("status", "photos.index", "--json")[1])["whitening"]
    assert run("index", photos)[0] == 0 and run("index", photos, "--layer", "h")[0] == 0
    code, _, err = run("index", photos, "--no-whiten")
    assert code == 2 and "`simclr-hub whiten photos.index --off` undoes it" in err
    code, _, err = run("index", photos, "--layer", "h+stage3")
    assert code == 2 and "photos.index was made of h; make another index for h+stage3" in err
    assert run("index", photos, "-o", "both.index", "--layer", "h+stage3")[0] == 0
    told = json.loads(run("status", "both.index", "--json")[1])
    assert told["dim"] == 384 and told["made_by"]["layer"] == "h+stage3" and told["whitening"]
    assert run("index", photos, "-o", "both.index")[0] == 0


def test_a_whitening_for_another_checkpoint(run, tiny_dir, crops, photos, tmp_path):
    model = shutil.copytree(tiny_dir, tmp_path / "model")
    assert run("index", photos, "--model", model)[0] == 0
    assert json.loads(run("status", "photos.index", "--json")[1])["whitening"] is None
    code, out, _ = run("whiten", model, crops, "-o", "w.safetensors", "--json")
    told = json.loads(out)
    assert code == 0 and (told["images"], told["failed"], told["learnt_from"]) == (130, 0, crops.name)
    whitening = Whitening.load("w.safetensors")
    assert whitening.dim == told["dim"] and len(whitening.mean) == 256
    code, out, _ = run("whiten", "photos.index", "--with", "w.safetensors")
    assert code == 0 and out == f"6 photos, whitened: learnt from 130 images ({crops.name})\n"
    shutil.copy("w.safetensors", model / "whitening.safetensors")
    assert run("index", photos, "--model", model, "-o", "new.index")[0] == 0
    with SimilarityIndex.open("new.index") as a, SimilarityIndex.open("photos.index") as b:
        np.testing.assert_allclose(a.vectors()[1], b.vectors()[1], atol=1e-6)
    code, out, _ = run("whiten", crops, "-o", "of-the-default.safetensors")
    assert code == 0 and out.startswith("learnt from 130 images") and "256 to" in out


def test_what_cannot_be_whitened_is_refused(run, photos, tiny_dir, tmp_path):
    assert run("index", photos, "--model", tiny_dir)[0] == 0
    for args, code, told in (
        (("photos.index",), 1, "6 images are too few to learn a whitening from; give 100 at least"),
        ((photos,), 2, "to learn a whitening from photos, give -o FILE.safetensors"),
        ((photos, "-o", "w.bin"), 2, "must end in .safetensors"),
        ((tiny_dir, photos), 2, "give -o FILE.safetensors"),
        ((tiny_dir, photos, "-o", "w.safetensors"), 1, "6 images are too few"),
        ((tiny_dir, photos, photos, "-o", "w.safetensors"), 2, "one MODEL and PHOTOS"),
        (("photos.index", "--off", "--with", "w.safetensors"), 2, "exclude each other"),
        (("photos.index", "--with", "none.safetensors"), 1, "none.safetensors: not a whitening"),
        (("photos.index", "--with", tiny_dir / "model.safetensors"), 1, "model.safetensors: not a whitening"),
        (("no/such/model", photos, "-o", "w.safetensors"), 1, "no/such/model"),
        ((tiny_dir, "nowhere", "-o", "w.safetensors"), 1, "nowhere"),
    ):
        found, _, err = run("whiten", *args)
        assert found == code and told in err and "Traceback" not in err, (args, err)
        assert not Path("w.safetensors").exists()
    Path("w.safetensors").write_text("mine")
    assert run("whiten", tiny_dir, photos, "-o", "w.safetensors")[0] == 1
    assert Path("w.safetensors").read_text() == "mine"
    default = Path(SAMPLE_PHOTOS.parent / "default" / "whitening.safetensors")
    code, _, err = run("whiten", "photos.index", "--with", default)
    assert code == 1 and "give the one that was learnt with this model" in err
