"""Published to a local Hub and used from it by the real huggingface_hub client: identical h everywhere, and faults."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_client import WITHOUT_US, Client, client
from hub_server import TOKEN, Blob, Fault, Hub, Repo, serve
from PIL import Image
from tiny import SAMPLE_PHOTOS, randomized, tiny_config

from simclr_hub import SimCLRForImageClassification, SimCLRImageProcessor, embed, load

pytestmark = pytest.mark.slow  # a real server, and clients in processes of their own

PHOTO = str(SAMPLE_PHOTOS / "cat_1.jpg")
PUBLISH = """
from dataclasses import asdict
from simclr_hub.training.publish import publish
result = asdict(publish(source, repo, **options))
"""
UPLOAD = """
from pathlib import Path
from simclr_hub.training.publish import upload
result = upload(Path(folder), repo).changed
"""
LOAD = """
from huggingface_hub import constants
constants.HF_HUB_CACHE = cache
import simclr_hub
result = simclr_hub.load("org/model")[0].encoder.stem.layers[0].convolution.weight.sum().item()
"""


@pytest.fixture(scope="module")
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def ours(hub, tmp_path_factory):
    """A client of it."""
    with client(hub, tmp_path_factory.mktemp("ours")) as ours:
        yield ours


@pytest.fixture
def empty(hub):
    """The hub with nothing on it."""
    for state in (hub.repos, hub.objects, hub.faults, hub.requests):
        state.clear()
    hub.lfs, hub.watch = True, lambda request: None
    return hub


def make(path, seed=0, **changes):
    """A classifier on g's first layer, saved with its processor."""
    torch.manual_seed(seed)
    config = tiny_config(num_labels=3, classifier_layer=1, id2label={0: "bird", 1: "cat", 2: "hat"}, **changes)
    model = randomized(SimCLRForImageClassification(config))
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(path)
    SimCLRImageProcessor(size=64).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make(tmp_path_factory.mktemp("model") / "classifier")


@pytest.fixture(scope="module")
def staged(ours, model_dir, tmp_path_factory):
    """Two versions of a staged folder that differ in every weight and in the card."""
    folders = []
    for seed in (0, 1):
        source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("staged")
        make(source, seed)
        (source / "results.json").write_text(json.dumps({"about": f"Version {seed}."}))
        ours.result(
            "from pathlib import Path\nfrom simclr_hub.training.publish import stage_model\n"
            "stage_model(source, 'org/model', Path(out))\nresult = 1",
            source=str(source), out=str(out),
        )  # fmt: skip
        folders.append(out)
    return folders


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(hub, repo="org/model", revision="main"):
    """What the hub shows, without its own .gitattributes."""
    files = hub.head(repo, revision).files
    return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}


def publish(ours, source, repo="org/model", **options):
    return ours.result(PUBLISH, source=str(source), repo=repo, options=options)


# ---- what the hub's users get


EVERYWHERE = """
import torch
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
from PIL import Image
model = AutoModel.from_pretrained(repo, **options).eval()
processor = AutoImageProcessor.from_pretrained(repo, **options)
pixels = processor(images=Image.open(photo), return_tensors="pt")
backbone = AutoBackbone.from_pretrained(repo, **options).eval()
classifier = AutoModelForImageClassification.from_pretrained(repo, **options).eval()
with torch.no_grad():
    result = {
        "AutoModel": model(**pixels).pooler_output[0].tolist(),
        "AutoBackbone": backbone(**pixels).feature_maps[-1].mean((2, 3))[0].tolist(),
        "pipeline": pipeline("image-feature-extraction", repo, **options)(photo, pool=True)[0],
        "labels": {r["label"]: r["score"] for r in pipeline("image-classification", repo, **options)(photo)},
        "logits": classifier(**pixels).logits[0].tolist(),
        "path": torch.equal(processor(images=photo, return_tensors="pt")["pixel_values"], pixels["pixel_values"]),
        "modules": sorted({type(x).__module__.partition(".")[0] for x in (model, processor, backbone, classifier)}),
    }
"""


OURS = """
import simclr_hub
from PIL import Image
from simclr_hub import SimCLRBackbone, SimCLRImageProcessor, SimCLRModel
pixels = SimCLRImageProcessor.from_pretrained("org/model")(images=Image.open(photo), return_tensors="pt")
result = [
    simclr_hub.embed(photo, model="org/model"),
    simclr_hub.embed(photo, model="org/model@" + commit),
    SimCLRModel.from_pretrained("org/model").eval()(**pixels).pooler_output,
    SimCLRModel.from_pretrained("org/model", revision=commit).eval()(**pixels).pooler_output,
    SimCLRBackbone.from_pretrained("org/model").eval()(**pixels).feature_maps[-1].mean((2, 3)),
]
result = [h[0].tolist() for h in result]
"""


def test_identical_h_everywhere(empty, ours, model_dir):
    commit = publish(ours, model_dir)["commit"]
    assert commit == empty.head("org/model").id
    expected = embed(PHOTO, model=str(model_dir))[0]
    model = SimCLRForImageClassification.from_pretrained(model_dir).eval()
    pixels = SimCLRImageProcessor.from_pretrained(model_dir)(images=Image.open(PHOTO), return_tensors="pt")
    with torch.no_grad():
        exact, logits = model.simclr(**pixels).pooler_output[0], model(**pixels).logits[0]
    found = ours.result(OURS, photo=PHOTO, commit=commit)
    for h in found[:2]:  # folded BatchNorm rounds in another order
        np.testing.assert_array_equal(np.float32(h), expected)
    np.testing.assert_allclose(expected, exact, rtol=1e-5, atol=1e-6)
    for h in found[2:]:
        np.testing.assert_array_equal(np.float32(h), exact)
    with_us = ours.result("import simclr_hub\n" + EVERYWHERE, repo="org/model", photo=PHOTO, options={})
    assert with_us["modules"] == ["simclr_hub"]  # the code in the repository did not run
    bare = WITHOUT_US + EVERYWHERE
    assert ours.run(WITHOUT_US + "import simclr_hub")["error"] == "ModuleNotFoundError"
    remote = ours.result(bare, repo="org/model", photo=PHOTO, options={"trust_remote_code": True})
    assert remote["modules"] == ["transformers_modules"]
    refused = ours.run(bare, repo="org/model", photo=PHOTO, options={"trust_remote_code": False})
    assert "trust_remote_code=True" in refused["message"]
    _run_the_cards_own_lines(empty, ours, exact)
    assert with_us["path"] and remote["path"]
    for found in (with_us, remote):
        for way in ("AutoModel", "AutoBackbone", "pipeline"):
            np.testing.assert_array_equal(np.float32(found[way]), exact, err_msg=way)
        np.testing.assert_array_equal(np.float32(found["logits"]), logits)
        probabilities = dict(zip(("bird", "cat", "hat"), logits.softmax(0).tolist(), strict=True))
        assert found["labels"] == pytest.approx(probabilities, abs=1e-6)


def _run_the_cards_own_lines(hub, ours, exact):
    alone, with_us = re.findall(r"```python\n(.*?)```", shown(hub)["README.md"].decode(), re.S)
    code = f"{WITHOUT_US}from PIL import Image\nimage = Image.open(photo)\n{alone}\nresult = h[0].tolist()"
    np.testing.assert_array_equal(np.float32(ours.result(code, photo=PHOTO)), exact)
    prepare = (
        "import os, shutil, tempfile\nos.chdir(tempfile.mkdtemp())\nos.mkdir('photos')\nshutil.copy(photo, 'photos')\n"
    )
    length = ours.result(f"{prepare}{with_us}\nresult = [vectors.shape, len(index)]", photo=PHOTO)
    assert length == [[1, 256], 1]


# ---- publishing


@pytest.mark.parametrize("lfs", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_publishing_again_makes_no_commit_and_a_change_makes_one(empty, ours, model_dir, tmp_path, lfs):
    empty.lfs = lfs
    first = publish(ours, model_dir)
    assert first["changed"] and first["url"] == f"{empty.url}/org/model"
    assert shown(empty)["model.safetensors"] == (model_dir / "model.safetensors").read_bytes()
    assert empty.head("org/model").files["model.safetensors"].lfs == lfs
    again = publish(ours, model_dir)
    assert not again["changed"] and again["commit"] == first["commit"]
    source = Path(shutil.copytree(model_dir, tmp_path / "source"))
    (source / "results.json").write_text('{"about": "Another."}')
    third = publish(ours, source)
    assert third["changed"] and b"Another." in shown(empty)["README.md"]
    assert len(empty.repos["org/model"].commits) == 3  # the first is the empty repository's
    puts = [request for request in empty.requests if request.startswith("PUT")]
    assert len(puts) == (1 if lfs else 0)  # the weights went once


@pytest.mark.slow
def test_shards_replace_one_file_and_what_is_not_ours_stays(empty, ours, model_dir, tmp_path):
    publish(ours, model_dir)
    repo = empty.repos["org/model"]
    repo.add("main", "by hand", {**repo.at("main").files, "example.png": Blob(b"png", False)})
    model = SimCLRForImageClassification.from_pretrained(model_dir)
    model.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    publish(ours, tmp_path / "shards")
    names = set(shown(empty))
    assert "model.safetensors" not in names and {"model.safetensors.index.json", "example.png"} <= names
    weight = ours.result(LOAD, cache=str(tmp_path / "cache"))
    assert weight == pytest.approx(model.simclr.encoder.stem.layers[0].convolution.weight.sum().item())
    publish(ours, model_dir)
    assert not any("index" in name or "-of-" in name for name in shown(empty)) and "example.png" in shown(empty)


@pytest.mark.slow
def test_private_and_a_branch(empty, ours, model_dir):
    publish(ours, model_dir, private=True, revision="v1")
    repo = empty.repos["org/model"]
    assert repo.private and set(repo.branches) == {"main", "v1"}
    assert "README.md" in shown(empty, revision="v1") and not shown(empty)
    assert not publish(ours, model_dir, private=True, revision="v1")["changed"]
    publish(ours, model_dir, "org/open")
    refused = ours.run(PUBLISH, source=str(model_dir), repo="org/open", options={"private": True})
    assert refused["error"] == "PublishError" and "is public already" in refused["message"]


def test_without_a_token_nothing_happens(empty, ours, model_dir):
    code = "import os; del os.environ['HF_TOKEN']\n" + PUBLISH
    answer = ours.run(code, source=str(model_dir), repo="org/model", options={})
    assert answer["error"] == "PublishError" and "org/model" in answer["message"] and "\n" not in answer["message"]
    assert not empty.repos


@pytest.mark.slow
def test_a_benchmark_of_the_hub_gets_eval_results(empty, ours, model_dir, tmp_path):
    benchmark = empty.repos["datasets/a/bench"] = Repo("datasets/a/bench")
    tasks = b"name: b\ntasks:\n  - {id: top1, config: default, split: test}\n"
    benchmark.add("main", "x", {"eval.yaml": Blob(tasks, False)})
    source = Path(shutil.copytree(model_dir, tmp_path / "source"))
    result = {"measure": "accuracy (%)", "value": 9.5, "dataset": "B", "command": "make b"}
    results = [result | {"dataset_id": "a/bench"}, result | {"dataset_id": "a/other"}]
    (source / "results.json").write_text(json.dumps({"results": results}))
    publish(ours, source)
    files = [name for name in shown(empty) if name.startswith(".eval_results")]
    assert files == [".eval_results/bench.yaml"]
    assert b"task_id: top1" in shown(empty)[files[0]] and b"value: 9.5" in shown(empty)[files[0]]


OFFICIAL = """
import contextlib, io, json
from pathlib import Path
import simclr_hub.training.publish as publishing
from simclr_hub import SimCLRConfig
from simclr_hub.cli import main
from simclr_hub.errors import CheckpointError
from simclr_hub.training import official_cards
asked = []
def official(name):
    asked.append(name)
    if name not in directories:
        raise CheckpointError(f"{name}: the server answers 404")
    return Path(directories[name])
publishing.official = official
official_cards.config_of = lambda entry: SimCLRConfig.from_pretrained(config)  # of the stand-ins
out = io.StringIO()
code = 0
with contextlib.redirect_stdout(out):
    try:
        main(["publish", *[w for n in names for w in ("--official", n)], "--org", "team", *flags])
    except SystemExit as e:
        code = e.code
result = {"code": code, "out": out.getvalue(), "asked": asked}
"""


def test_official_ones_one_after_another(empty, ours, tmp_path):
    names = ["simclr-v2-r50", "simclr-v2-r50-sk", "simclr-v2-r50-finetuned-1pct"]
    directories = {}
    for i, name in enumerate(names):
        directories[name] = str(make(tmp_path / name, i))
        source = {"name": name, "url": f"https://x.test/{name}", "step": 7, "sha256": f"{i}" * 64, "size": 1}
        (tmp_path / name / "source.json").write_text(json.dumps(source))
    there = {name: directories[name] for name in (names[0], names[2])}

    def run(directories, *flags):
        return ours.result(
            OFFICIAL, names=names, directories=directories, config=str(tmp_path / names[0]), flags=flags
        )

    first = run(there, "--json")
    assert first["code"] == 1 and first["asked"] == names  # one failed, the others went on
    states = [(row["name"], row["repo_id"], row["state"]) for row in json.loads(first["out"])]
    assert states == [
        (names[0], "team/simclr-v2-r50", "published"),
        (names[1], "team/simclr-v2-r50-sk", "failed"),
        (names[2], "team/simclr-v2-r50-finetuned-1pct", "published"),
    ]
    assert json.loads(first["out"])[1]["detail"] == "simclr-v2-r50-sk: the server answers 404"
    card = shown(empty, "team/simclr-v2-r50")["README.md"].decode()
    assert "0" * 64 in card and "| 71.7 |" in card and "team/simclr-v2-r50" in card
    commits = len(empty.repos["team/simclr-v2-r50"].commits)
    again = run(directories)
    assert again["code"] == 0 and again["asked"] == [names[1]]  # what is there is not downloaded again
    table = [line.split()[:3] for line in again["out"].splitlines()]
    assert [row[2] for row in table] == ["state", "unchanged", "published", "unchanged"]
    assert len(empty.repos["team/simclr-v2-r50"].commits) == commits
    # A card that changed, and weights that went missing, are seen.
    repo = empty.repos["team/simclr-v2-r50"]
    repo.add("main", "by hand", {**repo.at("main").files, "README.md": Blob(b"---\nlicense: mit\n---\n", False)})
    other = empty.repos["team/simclr-v2-r50-sk"]
    other.add("main", "by hand", {k: v for k, v in other.at("main").files.items() if "safetensors" not in k})
    last = run(directories, "--json")
    assert [row["state"] for row in json.loads(last["out"])] == ["published", "published", "unchanged"]
    assert shown(empty, "team/simclr-v2-r50")["README.md"].decode() == card


@pytest.mark.slow
def test_all_means_all(empty, ours):
    result = ours.result(OFFICIAL, names=["all"], directories={}, config="", flags=["--json"])
    rows = json.loads(result["out"])
    assert result["code"] == 1 and len(rows) == 75 and {row["state"] for row in rows} == {"failed"}
    assert not empty.repos


# ---- faults

KINDS = [404, 429, 500, "drop", "lost", "cut", "flip", "kill", "kill-after"]


def upload_requests(hub, ours, folder):
    """The requests of an update, as it goes without a fault."""
    hub.requests.clear()
    ours.result(UPLOAD, folder=str(folder), repo="org/model")
    return list(hub.requests)


def check_upload_fault(hub: Hub, ours: Client, staged, lfs, fault: Fault):
    """An update with one fault: the old or the new model whole, one line of error, and a rerun completes."""
    old, new = staged
    for state in (hub.repos, hub.objects, hub.faults):
        state.clear()
    hub.lfs = lfs
    ours.result(UPLOAD, folder=str(old), repo="org/model")
    before, wanted = content(old), content(new)
    hub.faults = [fault]
    answer = ours.run(UPLOAD, folder=str(new), repo="org/model")
    hub.faults = []
    assert shown(hub) in (before, wanted)
    if "result" in answer:
        assert shown(hub) == wanted
    else:
        assert answer["killed"] == str(fault.kind).startswith("kill")
        assert answer["killed"] or (answer["error"] == "PublishError" and "\n" not in answer["message"]), answer
    ours.result(UPLOAD, folder=str(new), repo="org/model")
    assert shown(hub) == wanted and len(hub.repos["org/model"].commits) == 3
    return answer


@pytest.mark.parametrize("kind", ["lost", "kill"])
def test_a_fault_at_the_commit(empty, ours, staged, kind):
    answer = check_upload_fault(empty, ours, staged, True, Fault(kind, path="/commit/"))
    assert kind == "kill" or "result" in answer, answer  # tried again


def test_someone_elses_commit_in_between_is_not_overlooked(empty, ours, staged):
    ours.result(UPLOAD, folder=str(staged[0]), repo="org/model")
    repo = empty.repos["org/model"]

    def another(request):
        if "/commit/" in request and len(repo.commits) == 2:
            shard = {"model-00001-of-00002.safetensors": Blob(b"theirs", False)}
            repo.add("main", "theirs", {**repo.at("main").files, **shard})

    empty.watch = another
    assert ours.result(UPLOAD, folder=str(staged[1]), repo="org/model")
    assert len(repo.commits) == 4 and shown(empty) == content(staged[1])


def test_a_bit_that_changes_in_the_upload_is_noticed(empty, ours, staged):
    answer = check_upload_fault(empty, ours, staged, True, Fault("flip", path="^/lfs/"))
    assert answer["error"] == "PublishError"


@pytest.mark.slow
def test_a_hub_that_stays_away_is_one_error(empty, ours, staged):
    ours.result(UPLOAD, folder=str(staged[0]), repo="org/model")
    empty.faults = [Fault(500, times=1000)]
    answer = ours.run(UPLOAD, folder=str(staged[1]), repo="org/model")
    assert answer["error"] == "PublishError" and "500" in answer["message"] and "\n" not in answer["message"]
    assert shown(empty) == content(staged[0])


@pytest.mark.slow
@pytest.mark.parametrize("lfs", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_at_each_request_of_an_upload(empty, ours, staged, lfs, kind):
    empty.lfs = lfs
    ours.result(UPLOAD, folder=str(staged[0]), repo="org/model")
    for at in range(len(upload_requests(empty, ours, staged[1]))):
        answer = check_upload_fault(empty, ours, staged, lfs, Fault(kind, at=at))
        if kind in (429, 500, "drop", "lost", "cut"):
            assert "result" in answer, (at, answer)  # tried again


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_at_each_request_of_a_first_upload(empty, ours, staged, kind):
    ours.result(UPLOAD, folder=str(staged[0]), repo="org/model")
    for at in range(len(empty.requests)):
        for state in (empty.repos, empty.objects):
            state.clear()
        empty.faults = [Fault(kind, at=at)]
        answer = ours.run(UPLOAD, folder=str(staged[0]), repo="org/model")
        empty.faults = []
        assert "org/model" not in empty.repos or shown(empty) in ({}, content(staged[0]))
        assert answer["killed"] or "result" in answer or answer["error"] == "PublishError", answer
        ours.result(UPLOAD, folder=str(staged[0]), repo="org/model")
        assert shown(empty) == content(staged[0])


def weight_of(folder):
    return load(folder)[0].encoder.stem.layers[0].convolution.weight.sum().item()


def check_download_fault(hub, ours, cache, fault, expected):
    """A download with a fault: the model, or one line of error; nothing broken in the cache; and a rerun completes."""
    shutil.rmtree(cache, ignore_errors=True)
    hub.faults = [fault]
    answer = ours.run(LOAD, cache=str(cache))
    hub.faults = []
    if "result" in answer:
        assert answer["result"] == expected
    else:
        assert answer["killed"] == str(fault.kind).startswith("kill")
        assert answer["killed"] or (answer["error"] == "CheckpointError" and "\n" not in answer["message"]), answer
    for file in cache.glob("models--*/blobs/*"):  # what has its final name is whole
        # Killed while it looks up the umask, huggingface_hub leaves the empty file that it does that with.
        is_umask_probe = file.name.startswith("tmp_") and not file.stat().st_size
        if not (file.name.endswith(".incomplete") or is_umask_probe):
            known = {blob.etag: blob.data for blob in hub.head("org/model").files.values()}
            assert file.read_bytes() == known[file.name], fault
    assert ours.result(LOAD, cache=str(cache)) == expected
    return answer


@pytest.fixture
def published(empty, ours, staged):
    ours.result(UPLOAD, folder=str(staged[0]), repo="org/model")
    empty.requests.clear()
    return weight_of(staged[0])


@pytest.mark.parametrize("kind", ["flip", "kill"])
def test_a_fault_in_the_weights_download(empty, ours, published, tmp_path, kind):
    fault = Fault(kind, path="resolve.*model.safetensors", at=1)
    answer = check_download_fault(empty, ours, tmp_path / "cache", fault, published)
    assert kind == "kill" or "result" in answer, answer  # tried again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message"),
    [("cut", "from the Hub: "), ("flip", "model.safetensors arrived damaged")],
)
def test_weights_that_never_arrive_whole_are_one_error(empty, ours, published, tmp_path, kind, message):
    fault = Fault(kind, path="resolve.*model.safetensors", at=1, times=1000)
    answer = check_download_fault(empty, ours, tmp_path / "cache", fault, published)
    assert answer["error"] == "CheckpointError" and message in answer["message"]


@pytest.mark.slow
@pytest.mark.parametrize("lfs", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_at_each_request_of_a_download(empty, ours, staged, tmp_path, lfs, kind):
    empty.lfs = lfs
    ours.result(UPLOAD, folder=str(staged[0]), repo="org/model")
    empty.requests.clear()
    expected = ours.result(LOAD, cache=str(tmp_path / "first"))
    assert expected == weight_of(staged[0])
    for at in range(len(empty.requests)):
        check_download_fault(empty, ours, tmp_path / "cache", Fault(kind, at=at), expected)


# ---- the local hub itself


def test_the_hub_hides_what_is_private_and_wants_a_token(empty):
    def ask(method, path, token=None, body=b"{}"):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return empty.answer(method, path, headers, body)[0]

    new = json.dumps({"name": "m", "organization": "o", "visibility": "private"}).encode()
    assert ask("POST", "/api/repos/create", None, new) == 401
    assert ask("POST", "/api/repos/create", TOKEN, new) == 200
    assert ask("POST", "/api/repos/create", TOKEN, new) == 409
    assert ask("GET", "/api/models/o/m") == 401 and ask("GET", "/api/models/o/m", TOKEN) == 200
    assert ask("GET", "/api/models/o/m/revision/x", TOKEN) == 404
    assert ask("GET", "/o/m/resolve/main/none", TOKEN) == 404
    assert ask("POST", "/api/models/o/m/branch/main", TOKEN) == 409


def test_the_hub_takes_a_commit_whole_or_not_at_all(empty):
    empty.repos["o/m"] = repo = Repo("o/m")
    repo.add("main", "initial", {})
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "a", "content": "YQ==", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "b", "algo": "sha256", "oid": "0" * 64, "size": 1}},
    ]
    headers = {"Authorization": f"Bearer {TOKEN}"}

    def send(lines):
        return empty.answer(
            "POST", "/api/models/o/m/commit/main", headers, b"\n".join(json.dumps(x).encode() for x in lines)
        )[0]

    assert send(lines) == 400 and not repo.at("main").files
    lines[0]["value"]["parentCommit"] = "f" * 40
    assert send(lines[:2]) == 412
    lines[0]["value"]["parentCommit"] = repo.at("main").id
    assert send(lines[:2]) == 200 and repo.at("main").files["a"].data == b"a"


def test_the_hub_serves_ranges(empty):
    empty.repos["o/m"] = repo = Repo("o/m")
    repo.add("main", "x", {"f": Blob(b"0123456789", True)})
    for wanted, status, body in (("bytes=4-", 206, b"456789"), ("bytes=2-4", 206, b"234"), ("", 200, b"0123456789")):
        assert empty.answer("GET", "/o/m/resolve/main/f", {"Range": wanted}, b"")[::2] == (status, body)
