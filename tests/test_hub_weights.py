"""Weights on the Hub without our config: names, which file, what is refused; and stand-ins on a local Hub."""

import io
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_client import client
from hub_server import Blob, Fault, Repo, serve
from test_pytorch_checkpoints import (
    Evil,
    dense_norm,
    fastssl,
    h_of,
    image,
    mmselfsup,
    prefixed,
    resnet,
    sequential,
    uncounted,
)
from torchvision.models.resnet import BasicBlock

from simclr_hub import errors, load
from simclr_hub.checkpoints import hub_weights
from simclr_hub.checkpoints.catalog import OTHERS
from simclr_hub.checkpoints.hub_weights import choose, is_known, parse

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("org/name", ("org/name", "", "")),
        ("org/name@v1", ("org/name", "v1", "")),
        ("org/name@feature/x", ("org/name", "feature/x", "")),
        ("org/name/x.pth", ("org/name", "", "x.pth")),
        ("org/name@v1/a folder/x.ckpt", ("org/name", "v1", "a folder/x.ckpt")),
        ("org/name@refs/pr/1/x.pth.tar", ("org/name", "refs/pr/1", "x.pth.tar")),
        ("org/name/folder", None),
        ("name", None),
        ("org/", None),
        ("org/name\\x.pth", None),
    ],
)
def test_names(name, parsed):
    assert parse(name) == parsed


def test_which_file():
    one = {"README.md": 1, "a/x.ckpt": 2, "train.log": 3}
    assert choose("org/name", one) == "a/x.ckpt"
    several = {"b.pth": 1, "a.pth": 2, "config.yml": 3}
    assert choose("org/name", several, "b.pth") == "b.pth"
    with pytest.raises(
        errors.CheckpointError, match=r"several files of weights, a.pth, b.pth; say which, such as org/"
    ):
        choose("org/name", several)
    with pytest.raises(errors.CheckpointError, match="no file c.pth in it; of weights there are a.pth, b.pth"):
        choose("org/name", several, "c.pth")
    with pytest.raises(errors.CheckpointError, match="no file of weights .* but README.md"):
        choose("org/name", {"README.md": 1})
    with pytest.raises(errors.CheckpointError, match="x0007.pth and 92 more"):
        choose("org/name", {f"x{i:04}.pth": 1 for i in range(100)})


def test_what_is_known_chooses_for_itself():
    erow = {f"checkpoint-{epoch}.pth": 1 for epoch in range(0, 1000, 50)} | {"checkpoint.pth": 1}
    assert choose("erow/rn50_simclr_bs4096_e1000", erow) == "checkpoint.pth"
    for known in OTHERS:
        repo, _, file = parse(known.name)
        assert is_known(repo) and known.source.startswith("https://")
        assert file or known.hidden_size in (512, 2048, 4096, 8192)
    assert not is_known("HaoxingChen/MACL") and not is_known("org/name")


@pytest.fixture
def answer(monkeypatch, tmp_path):
    """A Hub that names these files, and gives none."""
    monkeypatch.setattr(hub_weights, "cached_assets_path", lambda *parts: tmp_path.joinpath(*parts))

    def answer(files, sha=SHA):
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
        monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: SimpleNamespace(sha=sha, siblings=siblings))
        monkeypatch.setattr(hub_weights, "snapshot", lambda *_: pytest.fail("something is downloaded"))

    return answer


@pytest.mark.parametrize(
    ("files", "sha", "message"),
    [
        ({"x.pth": 1 << 60}, SHA, "x.pth has 1,152,921,504,606,846,976 bytes, more than"),
        ({"x.pth": None}, SHA, "no size of x.pth"),
        ({"x.pth": 3}, "main", "names no commit"),
        ({"../../x.pth": 3}, SHA, "is no path"),
        ({"/x.pth": 3}, SHA, "is no path"),
        ({"x.py": 3}, SHA, "no file of weights"),
    ],
)
def test_what_a_hub_says_is_not_trusted(answer, files, sha, message):
    answer(files, sha)
    with pytest.raises(errors.CheckpointError, match=message):
        hub_weights.hub_weights("org/name")


def test_a_hub_out_of_reach_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setattr(hub_weights, "cached_assets_path", lambda *parts: tmp_path.joinpath(*parts))

    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.model_info", refuse)
    with pytest.raises(errors.CheckpointError, match="org/name: from the Hub: no route to host"):
        hub_weights.hub_weights("org/name")


def test_a_misspelt_path_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(errors.CheckpointError, match="runs/final/x.pth: neither a directory"):
        load("runs/final/x.pth")


def test_models_lists_them(run):
    code, listed, _ = run("models")
    assert code == 0 and all(known.name in listed for known in OTHERS)
    others = json.loads(run("models", "--json")[1])["others"]
    assert [one["name"] for one in others] == [known.name for known in OTHERS]


# ---- on a local Hub, with a real client


def blob(content):
    file = io.BytesIO()
    torch.save(content, file)
    return Blob(file.getvalue(), True)


def lightning(net):
    """DM-Diaz's: an nn.Sequential backbone and lightly's projection head in a Lightning checkpoint."""
    head = dense_norm(64, 64, 16)
    state = prefixed("backbone.", sequential(net)) | prefixed("projection_head.layers.", head.state_dict())
    return {"state_dict": state, "epoch": 3, "callbacks": {}, "pytorch-lightning_version": "2.5.0", "loops": {}}


@pytest.fixture(scope="module")
def stand_ins():
    """Name -> network and repository's files, small, with the names and wrappers of the real ones."""
    wide, basic, slim = resnet(width=128, depths=(1, 1, 1, 1)), resnet(BasicBlock), resnet(depths=(1, 1, 1, 1))
    fast = resnet()
    other = blob({"state_dict": prefixed("backbone.", resnet(BasicBlock, width=16).state_dict())})
    return {
        "lightly-ai/simclrv1-imagenet1k-resnet50-2x": (
            wide,
            {"resnet50-2x.pth": blob({"state_dict": uncounted(wide)})},
        ),
        "DM-Diaz/SimCLR-ResNet18-ImageNet1K": (basic, {"epoch=3.ckpt": blob(lightning(basic))}),
        "erow/rn50_simclr_bs4096_e1000": (fast, {"checkpoint-0.pth": other, "checkpoint.pth": blob(fastssl(fast))}),
        "HaoxingChen/MACL_ICML23/simclr_256_e800/latest.pth": (
            slim,
            {"simclr_256_e800/latest.pth": blob(mmselfsup(slim)[0]), "simclr_2048_e200/latest.pth": other},
        ),
    }


@pytest.fixture(scope="module")
def hub(stand_ins):
    with serve() as hub:
        for name, (_, files) in stand_ins.items():
            repo = "/".join(name.split("/")[:2])
            hub.repos[repo] = Repo(repo)
            hub.repos[repo].add("main", "weights", {"README.md": Blob(b"# a card", False), **files})
        hub.repos["org/evil"] = Repo("org/evil")
        hub.repos["org/evil"].add("main", "code", {"x.pth": blob({"state_dict": {}, "callback": Evil()})})
        yield hub


LOAD = """
import torch, simclr_hub, os
model, processor = simclr_hub.load(name)
h = model(torch.tensor(pixels)).pooler_output.detach()
result = {"h": h.tolist(), "name": model.config.name_or_path, "normalized": bool(processor.do_normalize)}
"""
EMBED = """
import numpy as np, simclr_hub
from simclr_hub.checkpoints.hub_weights import hub_weights
images = [np.full((40, 40, 3), 99, np.uint8)]
directory = hub_weights(name)
a, b = simclr_hub.embed(images, model=name), simclr_hub.embed(images, model=str(directory))
result = [float(np.abs(a - b).max()), int(a.shape[1]), sorted(p.name for p in directory.iterdir())]
"""


@pytest.mark.slow
def test_stand_ins_of_what_is_on_the_hub_give_their_networks_h(hub, stand_ins, tmp_path):
    x = image((33, 41))
    with client(hub, tmp_path) as ours:
        for name, (net, _) in stand_ins.items():
            found = ours.result(LOAD, name=name, pixels=x.tolist())
            expected = h_of(net, x)
            assert float((torch.tensor(found["h"]) - expected).abs().max() / expected.abs().max()) < 1e-5, name
            repo = "/".join(name.split("/")[:2])
            assert found["name"].startswith(f"{repo}@{hub.head(repo).id}/") and found["name"].endswith(
                (".pth", ".ckpt")
            )
            assert found["normalized"] is not name.startswith("lightly")
            again = ours.result(LOAD, name=found["name"], pixels=x.tolist())  # the lasting name is a name
            assert np.allclose(again["h"], found["h"])
            drift, width, files = ours.result(EMBED, name=name)
            assert drift == 0 and width == expected.shape[1]
            assert {"config.json", "model.safetensors", "preprocessor_config.json", "source.json"} <= set(files)
        asked = [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
        assert not [line for line in asked if line.endswith(("checkpoint-0.pth", "simclr_2048_e200/latest.pth"))]
        assert len(asked) == len(set(asked)), "a file is downloaded twice"
        # A choice, an index's worth of refusals, and no network.
        for name, message in (
            ("HaoxingChen/MACL_ICML23", "say which, such as HaoxingChen/MACL_ICML23/simclr_2048_e200/latest.pth"),
            ("org/evil", "Python objects besides tensors"),
            ("org/none", "org/none: no such directory here, and from the Hub"),
        ):
            answer = ours.run(LOAD, name=name, pixels=[])
            assert answer["error"] == "CheckpointError" and message in answer["message"], answer
            assert str(tmp_path) not in answer["message"]
        assert not [path for path in tmp_path.rglob("owned")]
        hub.faults.append(Fault(500, times=1000))
        name = "erow/rn50_simclr_bs4096_e1000"
        assert "h" in ours.result(LOAD, name=name, pixels=x.tolist())
        hub.faults.clear()


@pytest.mark.slow
def test_convert_takes_such_an_id_with_options(hub, tmp_path):
    code = """
from simclr_hub.cli import main
try:
    main(["convert", name, out, "--image-size", "225", "--normalize", "none", "--json"])
except SystemExit as e:
    result = e.code
"""
    with client(hub, tmp_path) as ours:
        name = "HaoxingChen/MACL_ICML23/simclr_256_e800/latest.pth"
        assert ours.result(code, name=name, out=str(tmp_path / "out")) == 0
        settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert settings["size"] == {"height": 225, "width": 225} and not settings.get("do_normalize")
        assert ours.result(code, name="HaoxingChen/MACL_ICML23", out=str(tmp_path / "two")) == 1
        assert not os.path.exists(tmp_path / "two")
