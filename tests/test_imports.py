"""What is imported when: the light door of every command that needs no model, and SimCLR in the Auto classes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from index.index_fakes import FakeEmbedder
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub import SimilarityIndex
from simclr_hub.checkpoints.catalog import config_of, entries
from simclr_hub.cli import COMMANDS
from simclr_hub.parts.part import Worker
from simclr_hub.parts.plan import make_plan
from simclr_hub.parts.run import prepare
from simclr_hub.parts.storage import Folder
from simclr_hub.training.finetune import finetune

#: What costs seconds or hundreds of megabytes, and what of it a command needs for what it does.
HEAVY = (
    "torch torchvision transformers datasets accelerate onnxruntime matplotlib pyarrow faiss fastapi sklearn psycopg"
    " pymilvus"
)
NEEDED = {
    "search": {"faiss", "onnxruntime"},
    "label": {"faiss", "onnxruntime"},
    "classify": {"faiss", "onnxruntime"},
    "index": {"faiss", "onnxruntime"},
    "embed": {"faiss", "onnxruntime"},
    "duplicates": {"faiss"},
    "export": {"faiss", "pyarrow"},
    "import": {"faiss", "pyarrow"},
    "parts": {"faiss", "pyarrow"},
    "vectors": {"faiss", "pyarrow", "psycopg"},
}

CHILD = """
import contextlib, json, os, sys
import simclr_hub
from simclr_hub.index import sandboxed_decode
for photo in sys.argv[3:]:
    assert sandboxed_decode._decode(os.fsencode(photo), 60, 0) is None
from simclr_hub.cli import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(sys.stderr):
        try:
            main(arguments)
        except SystemExit as e:
            code = e.code
    print(json.dumps([arguments, code, sorted(set(sys.argv[2].split()) & sys.modules.keys())]))
"""


def assert_light(commands: list[list[str]], folder: Path, *suspects: Path) -> None:
    """One child runs them all, since what is loaded only becomes more: those that need something last.

    Before, it decodes `suspects` as the index does after a crash.
    """
    child = [sys.executable, "-W", "error", "-c", CHILD, json.dumps(commands), HEAVY, *suspects]
    run = subprocess.run(child, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [arguments for arguments, *_ in lines] == commands
    for arguments, code, loaded in lines:
        assert code == 0, (arguments, run.stderr)
        assert set(loaded) <= NEEDED.get(arguments[0], set()), arguments


def test_help_and_the_catalog_load_nothing_heavy(tmp_path: Path) -> None:
    assert_light([["--version"], ["--help"], *([name, "--help"] for name in COMMANDS), ["models"]], tmp_path)


def test_commands_on_an_index_load_no_model_and_no_torch(tmp_path: Path, photos: Path) -> None:
    Image.open(photos / "0.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / "copy.png")  # compared
    (photos / "broken.jpg").write_bytes(b"no photo")
    for name, of in (("a", "0.jpg"), ("b", "1.jpg")):
        (tmp_path / "examples" / name).mkdir(parents=True)
        shutil.copy(photos / of, tmp_path / "examples" / name)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as index:
        index.sync(photos)
    # The same plan as below, made before: a plan of the same images has the same parts.
    worker = Worker(make_plan([str(photos)], tmp_path / "as planned"), Folder(tmp_path / "made"), FakeEmbedder())
    prepare(worker.out, worker.plan)
    assert [worker.embed(name).state for name in worker.plan.parts] == ["made"]
    commands = [
        ["status", "i"],
        ["failures", "i"],
        ["missing", "i"],
        ["prune", "i"],
        ["check", "i"],
        ["search", "i", str(photos / "0.jpg"), "--html", "page.html"],
        ["label", "i", "examples", "-o", "l.csv", "--html", "l.html"],
        ["duplicates", "i", "--tier", "same-bytes"],
        ["duplicates", "i"],
        ["export", "i", "i.parquet"],
        ["import", "i.parquet", "again"],
        ["parts", "plan", str(photos), "-o", "plan"],
        ["parts", "check", "plan", "made"],
    ]
    assert_light(commands, tmp_path, photos / "0.jpg")


def test_a_new_photo_and_a_folder_need_no_torch_with_the_default_checkpoint(tmp_path: Path, photos: Path) -> None:
    """Nor do large JPEGs, which are decoded at a reduced size."""
    Image.open(photos / "0.jpg").resize((4000, 3000)).save(photos / "large.jpg")
    shutil.copytree(photos, tmp_path / "new")
    Image.open(photos / "1.jpg").rotate(5).save(tmp_path / "new" / "1.jpg")
    for angle in (3, 7):
        (tmp_path / "examples" / str(angle)).mkdir(parents=True)
        Image.open(photos / "1.jpg").rotate(angle).save(tmp_path / "examples" / str(angle) / "1.jpg")
    commands = [
        ["index", str(photos), "-o", "i"],
        ["index", str(tmp_path / "new"), "-o", "i"],
        ["search", "i", str(tmp_path / "new" / "2.jpg"), "--not", str(SAMPLE_PHOTOS / "cat_1.jpg")],
        ["search", "i", str(SAMPLE_PHOTOS / "cat_2.jpg")],
        ["embed", str(photos / "0.jpg"), "-o", "e.npz"],
        ["label", "i", "examples"],
    ]
    assert_light(commands, tmp_path)


def test_a_classifier_needs_no_torch_once_it_was_used(tmp_path: Path) -> None:
    for name in ("cat", "shoes"):
        for photo in SAMPLE_PHOTOS.glob(f"{name}_*.jpg"):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, tmp_path / "photos" / name)
    photos, out = str(tmp_path / "photos"), tmp_path / "run"
    final = str(finetune("finetune_photos", (f"data={photos}", "method=logistic", f"output_dir={out}")))
    with SimilarityIndex.create(tmp_path / "i", final) as index:
        index.sync(photos)  # exports it
    commands = [["classify", final, "i", "-o", "of index.csv"], ["classify", final, photos, "-o", "of photos.csv"]]
    assert_light(commands, tmp_path)


def test_the_catalog_knows_the_width_of_h_without_transformers() -> None:
    for entry in entries().values():
        assert entry.hidden_size == config_of(entry).hidden_size


#: What a program may import first, whichever it is; the Auto classes know SimCLR afterwards.
FIRST = {
    "simclr_hub, and two threads": """
import simclr_hub
from concurrent.futures import ThreadPoolExecutor
assert "torch" not in sys.modules
def auto():
    from transformers import AutoModel
with ThreadPoolExecutor(2) as pool:
    for done in [pool.submit(lambda: simclr_hub.SimCLRModel), pool.submit(auto)]:
        done.result()
""",
    "the Auto classes": "from transformers import AutoModel, AutoImageProcessor; import simclr_hub",
}
AFTERWARDS = """
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
import simclr_hub
config = AutoConfig.from_pretrained(sys.argv[1])
assert type(config) is simclr_hub.SimCLRConfig
assert type(AutoModel.from_pretrained(sys.argv[1])) is simclr_hub.SimCLRModel
assert type(AutoModelForImageClassification.from_config(config)) is simclr_hub.SimCLRForImageClassification
assert type(AutoBackbone.from_config(config)) is simclr_hub.SimCLRBackbone
assert type(AutoImageProcessor.from_pretrained(sys.argv[1])) is simclr_hub.SimCLRImageProcessor
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)  # each 5 s of importing transformers
def test_the_auto_classes_know_simclr_whichever_is_imported_first(first: str, tiny_dir: Path) -> None:
    code = f"import sys\n{FIRST[first]}\n{AFTERWARDS}"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code, tiny_dir], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_finder_that_waits_leaves_everything_else_as_it_is() -> None:
    from simclr_hub import _auto, modeling_simclr

    finder = _auto._Finder()
    assert finder.find_spec("json", None) is None
    spec = finder.find_spec("simclr_hub.modeling_simclr", __import__("simclr_hub").__path__)
    assert spec is not None and spec.origin == modeling_simclr.__file__
    assert type(spec.loader) is type(modeling_simclr.__spec__.loader)


@pytest.mark.parametrize("first", ["pages", "duplicates.find", "duplicates.neighbours", "index.results", "rendering"])
def test_whichever_module_is_imported_first(first: str) -> None:
    """Of those that packages import again, a circle through a package's __init__ would fail for some only."""
    run = subprocess.run([sys.executable, "-c", f"import simclr_hub.{first}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
