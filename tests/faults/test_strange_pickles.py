"""Weights from strangers: a file that would take for ever, or all memory, to open is refused before it is opened."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import tf_writer
import torch
from tf_writer import write_bundle

from simclr_hub.checkpoints import torch_file as pickled
from simclr_hub.checkpoints.convert import convert
from simclr_hub.checkpoints.tf_bundle import TFBundle
from simclr_hub.checkpoints.torch_file import look, state_dict
from simclr_hub.errors import CheckpointError

HEAD = b"\x80\x02"


def shared(leaf: bytes, level: bytes) -> bytes:
    """One object in the next, named twice, sixty times over: 2^60 when each is counted."""
    return leaf + b"".join(b"q%c0" % n + level % ((n,) * level.count(b"%c")) for n in range(60))


PAIR = shared(b")", b"h%ch%c\x86")
LISTS = shared(b"]", b"(h%ch%cl")
STRANGE = {
    "a key": HEAD + b"}" + PAIR + b"K\x01s.",
    "a key of many": HEAD + b"}(" + PAIR + b"K\x01u.",
    "within a list": HEAD + b"]" + PAIR + b"a.",
    "a member of a set": HEAD + b"c__builtin__\nset\n]" + PAIR + b"a\x85R.",
    "a key of an OrderedDict": HEAD + b"ccollections\nOrderedDict\n](" + PAIR + b"K\x01le\x85R.",
    "counted": HEAD + b"ccollections\nCounter\n]" + PAIR + b"a\x85R.",
    "of three": HEAD + b"}" + shared(b")", b"h%ch%ch%c\x87") + b"K\x01s.",
    "of lists": HEAD + b"}" + LISTS + b"K\x01s.",
    "the state of an object": HEAD + b"ccollections\nOrderedDict\n)R" + PAIR + b"b.",
    "protocol 4": b"\x80\x04}" + b")" + b"".join(b"\x940h%ch%c\x86" % (n, n) for n in range(60)) + b"K\x01s.",
    "an id of a storage": HEAD + PAIR + b"Q.",
    "deep": HEAD + b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.",
    "deep lists": HEAD + b"]" * 200_000 + b"a" * 199_999 + b".",
    "as many bytes as asked": HEAD + b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "as many numbers as asked": HEAD + b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R.",
    "of a type": HEAD + b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.",
    "made new": HEAD + b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85\x81.",
    "a storage": HEAD + b"ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.",
    "onto a number": HEAD + b"K\x01K\x02a.",
    "an empty stack": HEAD + b"s.",
    "never stored": HEAD + b"h\x05.",
    "a mark": HEAD + b"(\x85.",
    "no end": HEAD + b"]",
    "no opcode": HEAD + b"\xff.",
}


def zipped(pickle_: bytes, name: str = "archive/data.pkl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, pickle_)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def before_1_6(pickle_: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(part, 2) for part in head) + pickle_ + pickle.dumps([], 2)


FORMS = {
    "zip": zipped,
    "another case": lambda pickle_: zipped(pickle_, "archive/DATA.PKL"),
    "before 1.6": before_1_6,
    "bare": bytes,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.timeout(20)
def test_a_strange_pickle_is_refused_before_it_is_opened(what, form, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    (path := tmp_path / "x.pth").write_bytes(FORMS[form](STRANGE[what]))
    shared_ = (
        PAIR in STRANGE[what] or LISTS in STRANGE[what] or what in ("of three", "protocol 4", "deep", "deep lists")
    )
    said = "name one another" if shared_ else "takes memory" if b"\xff\xff\xff\x7f" in STRANGE[what] else "pickle|code"
    with pytest.raises(CheckpointError, match=f"x.pth: .*({said if form != 'bare' or shared_ else ''})") as e:
        convert(path, tmp_path / "out")
    assert len(str(e.value)) < 500
    assert not (tmp_path / "out").exists()


def test_what_networks_are_saved_as_is_counted_small(tmp_path, monkeypatch):
    net = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(200)))
    optimizer = torch.optim.Adam(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    content = {
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": OrderedDict(a=1),
    }
    monkeypatch.setattr(pickled, "MOST", 500_000)  # a fortieth of what is allowed
    for zip_format in (True, False):
        torch.save(content, path := tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format)
        assert state_dict(path, []).keys() == net.state_dict().keys()


def test_an_object_that_holds_itself_is_let_through():
    loop: list = []
    loop.append(loop)
    look(io.BytesIO(pickle.dumps({"a": loop}, 2)))


@pytest.mark.parametrize("kind", ["before", "comment", "twice", "bzip2", "lzma"])
def test_a_zip_file_that_can_be_read_in_two_ways_is_refused(kind, tmp_path, recwarn):
    torch.save({"a": torch.zeros(3)}, path := tmp_path / "x.pth")
    if kind == "before":
        path.write_bytes(b"12345" + path.read_bytes())
    else:
        method = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(kind, zipfile.ZIP_STORED)
        with zipfile.ZipFile(path, "a", method) as archive:
            if kind == "comment":
                archive.comment = b"x"
            else:
                archive.writestr("x/data.pkl" if kind == "twice" else "x/extra", bytes(100))
    recwarn.clear()
    with pytest.raises(CheckpointError, match="in two ways|compressed"):
        convert(path, tmp_path / "out")


def test_names_that_are_none_are_refused(tmp_path):
    for key in (10**6000, ("a", "b"), "n" * 5000, b"x"):
        torch.save({key: torch.zeros(3)}, path := tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="no state_dict|damaged, incomplete") as e:
            convert(path, tmp_path / "out")
        assert len(str(e.value)) < 500


def safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
STRANGE_SAFETENSORS = {
    "a header of 2^60 bytes": safetensors({}, size=1 << 60),
    "overlapping": safetensors({"a": F32, "b": F32}, bytes(4)),
    "beyond the end": safetensors({"a": {**F32, "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, bytes(4)),
    "a shape that wraps": safetensors({"a": {**F32, "shape": [1 << 62, 4]}}, bytes(4)),
    "more than told": safetensors({"a": F32}, bytes(400)),
    "nested": safetensors(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no JSON": safetensors(b"{{{{"),
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGE_SAFETENSORS)
def test_strange_safetensors_are_refused(what, tmp_path):
    (path := tmp_path / "x.safetensors").write_bytes(STRANGE_SAFETENSORS[what])
    with pytest.raises(CheckpointError, match="x.safetensors: "):
        convert(path, tmp_path / "out")


def test_tensors_of_a_bundle_do_not_share_their_bytes(tmp_path: Path):
    array = np.arange(4, dtype=np.float32)
    there = tf_writer.entry(shape=(4,), offset=0, size=16, crc=tf_writer.masked(array.tobytes()))
    prefix = write_bundle(tmp_path / "apart" / "model.ckpt-1", {"a": array, "b": array})
    assert np.array_equal(TFBundle(prefix).read("b"), array)
    prefix = write_bundle(tmp_path / "shared" / "model.ckpt-1", {"a": array}, extra=[(b"b", there)])
    with pytest.raises(CheckpointError, match="'b' lies where another tensor does"):
        TFBundle(prefix)
