"""TensorFlow's files read without TensorFlow: right, or a CheckpointError; never wrong, hanging or huge."""

import os
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tf_writer as w

from simclr_hub.checkpoints.tf_bundle import TFBundle
from simclr_hub.errors import CheckpointError

OFFICIAL = Path(__file__).parent / "data" / "official"


def tensors():
    random = np.random.default_rng(0)
    named = {
        f"base_model/conv2d_{i}/kernel": random.normal(size=(1, 1, i + 1, 3)).astype(np.float32) for i in range(20)
    }
    return named | {"global_step": np.array(7, np.int64), "empty": np.zeros((0, 3), np.float32)}


@pytest.fixture
def bundle(tmp_path):
    return w.write_bundle(tmp_path / "model.ckpt-7", tensors(), per_block=5)


def read_all(source):
    opened = TFBundle(source)
    return {name: opened.read(name) for name in opened.shapes}


def assert_right_or_refused(source, expected):
    """Each tensor comes back as it was written, or there is a CheckpointError, in a moment; whether there was one."""
    start = time.monotonic()
    refused = False
    try:
        opened = TFBundle(source)
    except CheckpointError as e:
        assert source.name in str(e)
        refused = True
    else:
        assert {name: array.shape for name, array in expected.items()} == dict(opened.shapes)
        for name, array in expected.items():
            try:
                got = opened.read(name)
            except CheckpointError as e:
                assert name in str(e)
                refused = True
            else:
                assert got.dtype == array.dtype and np.array_equal(got, array), name
    assert time.monotonic() - start < 2
    return refused


@pytest.mark.parametrize("shards", [1, 3])
def test_what_was_written_is_read(tmp_path, shards):
    random = np.random.default_rng(0)
    written = {d: random.integers(0, 2, (2, 3)).astype(d) for d in w.DTYPES} | tensors()
    prefix = w.write_bundle(tmp_path / "model.ckpt-7", written, shards=shards, per_block=5)
    for source in (prefix, str(prefix), f"{prefix}.index", tmp_path):
        read = read_all(source)
        assert list(read) == sorted(written)
        for name, array in written.items():
            assert read[name].dtype == array.dtype and np.array_equal(read[name], array), name
    read["float32"][:] = 1  # one's own array


def test_the_official_files_are_read():
    opened = TFBundle(OFFICIAL / "v2_sk1_head3")
    assert opened.prefix.name == "model.ckpt-250228"
    assert len(opened.shapes) == 407
    assert opened.shapes["base_model/conv2d/kernel"] == (3, 3, 3, 4)
    assert opened.read("global_step") == 250228
    assert sum(opened.read(name).nbytes for name in opened.shapes) == 4397008  # every byte of the data file


def test_strings_and_other_types_are_not_offered(tmp_path):
    strange = [(b"text", w.entry(dtype=7, shape=(2,), size=99)), (b"void", w.entry(dtype=14, offset=1 << 50))]
    prefix = w.write_bundle(tmp_path / "model.ckpt-7", {"x": np.zeros(2, np.float32)}, extra=strange)
    opened = TFBundle(prefix)
    assert list(opened.shapes) == ["x"]
    with pytest.raises(CheckpointError, match="no numeric tensor 'text'"):
        opened.read("text")


def test_a_tensor_is_read_alone(tmp_path):
    prefix = tmp_path / "model.ckpt-7"
    raw, far = np.arange(4, dtype=np.float32).tobytes(), 40 << 30
    value = w.entry(shape=(4,), offset=far, size=16, crc=w.masked(raw))
    Path(f"{prefix}.index").write_bytes(w.table([w.block([(b"", w.HEADER), (b"x", value)])]))
    with open(f"{prefix}.data-00000-of-00001", "wb") as file:  # 40 GB, sparse
        file.seek(far)
        file.write(raw)
    assert TFBundle(prefix).read("x").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["index", "data-00000-of-00001"])
def test_any_flipped_bit_or_truncation_is_noticed(bundle, kind):
    path, expected = Path(f"{bundle}.{kind}"), tensors()
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    flips = [(at, random.integers(8)) for at in random.integers(0, len(whole), 300)]
    if kind == "index":  # the footer has no checksum
        flips += [(at, bit) for at in range(len(whole) - 48, len(whole)) for bit in range(8)]
    refusals = []
    for at, bit in flips:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(bit)
        path.write_bytes(damaged)
        refusals.append(assert_right_or_refused(bundle, expected))
    # What nothing points to may pass: the footer's padding, the block of meta blocks.
    assert all(refusals) if kind != "index" else np.mean(refusals[:300]) > 0.9
    for length in random.integers(0, len(whole), 100):
        path.write_bytes(whole[:length])
        assert assert_right_or_refused(bundle, expected)
    path.write_bytes(whole)
    assert not assert_right_or_refused(bundle, expected)


def test_random_damage_to_an_official_file(tmp_path):
    shutil.copytree(OFFICIAL / "cifar_basic_head2", tmp_path, dirs_exist_ok=True)
    prefix, expected = tmp_path / "model.ckpt-250228", read_all(tmp_path)
    path = Path(f"{prefix}.index")
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(whole)
        start = int(random.integers(len(whole)))
        match random.integers(3):
            case 0:
                damaged[start : start + 8] = random.bytes(len(damaged[start : start + 8]))
            case 1:
                del damaged[start : start + int(random.integers(1, 64))]
            case 2:
                damaged[start:start] = random.bytes(int(random.integers(1, 64)))
        path.write_bytes(damaged)
        assert_right_or_refused(prefix, expected)


def with_entry(**changes):
    return w.table([w.block([(b"", w.HEADER), (b"x", w.entry(**{"shape": (2,), "size": 8, **changes}))])])


def with_block(contents):
    return w.table([contents])


def bomb():
    """100,000 handles to one block of a megabyte that holds nothing but restart points."""
    empty = b"\0" * (1 << 20) + (1 << 18).to_bytes(4, "little")
    out = w.sealed(empty)
    index = w.block([(b"%06d" % i, w.varint(0) + w.varint(len(empty))) for i in range(100_000)], interval=1)
    return out + w.sealed(index) + w.footer((0, 0), (len(out), len(index)))


def long_keys():
    """Keys that each share all but a byte with the one before, and grow."""
    chain = b"".join(w.varint(i) + b"\1\0a" for i in range(200_000))
    return with_block(chain + b"\0" * 4 + b"\1\0\0\0")


HUGE = (1 << 63) + 5
FORGED = {
    "empty file": (b"", "footer"),
    "only a footer": (w.footer((0, 0), (0, 0)), "does not fit"),
    "index block past the end": (w.footer((0, 8), (1 << 40, 8)), "does not fit"),
    "index block huge": (w.footer((0, 8), (0, HUGE)), "does not fit"),
    "footer varints endless": (b"\xff" * 40 + w.footer((0, 0), (0, 0))[-8:], "runs past"),
    "two to the 64": (b"\xff" * 9 + b"\x7f" + bytes(30) + w.footer((0, 0), (0, 0))[-8:], "runs past"),
    "no data blocks": (w.table([]), "no header"),
    "no header": (w.table([w.block([(b"x", w.entry())])]), "no header"),
    "snappy": (w.table([w.block([(b"", w.HEADER)])], compression=1), "snappy"),
    "unknown compression": (w.table([w.block([(b"", w.HEADER)])], compression=9), "compressed with 9"),
    "big-endian": (w.table([w.block([(b"", b"\x08\x01\x10\x01")])]), "big-endian"),
    "restart count huge": (with_block(b"\0" * 8 + b"\xff" * 4), "restart points"),
    "block too short": (with_block(b"\0\0"), "does not fit"),
    "key shares too much": (with_block(b"\5\1\0a" + b"\0" * 4 + b"\1\0\0\0"), "impossible lengths"),
    "key length huge": (with_block(b"\0" + w.varint(HUGE) + b"\0a" + b"\0" * 4 + b"\1\0\0\0"), "impossible lengths"),
    "value length huge": (with_block(b"\0\1" + w.varint(HUGE) + b"a" + b"\0" * 4 + b"\1\0\0\0"), "impossible lengths"),
    "entry across the restart points": (with_block(b"\0\1\4" + b"\0" * 4 + b"\1\0\0\0"), "impossible lengths"),
    "bomb of blocks": (bomb(), "list of blocks"),
    "bomb of keys": (long_keys(), "impossible lengths"),
    "names repeated": (w.table([w.block([(b"", w.HEADER), (b"x", w.entry()), (b"x", w.entry())])]), "repeated"),
    "names out of order": (w.table([w.block([(b"b", b"")]), w.block([(b"a", b"")])]), "out of order"),
    "name not UTF-8": (w.table([w.block([(b"", w.HEADER), (b"\xff", w.entry())])]), "UTF-8"),
    "part that is not there": (with_entry(shard=1), "part 1 of 1"),
    "no parts": (w.table([w.block([(b"", b""), (b"x", w.entry())])]), "part 0 of 0"),
    "size too small": (with_entry(size=4), "cannot have 4 bytes"),
    "size huge": (with_entry(size=HUGE), "cannot have"),
    "offset huge": (with_entry(offset=HUGE), "truncated"),
    "shape overflows to the size": (with_entry(shape=(1 << 32, 1 << 32), size=0), "cannot have 0 bytes"),
    "shape overflows to 8": (with_entry(shape=(1 << 62, 2, (1 << 64) - 1), size=8), "cannot have 8 bytes"),
    "shape huge and empty": (with_entry(shape=(0, 1 << 62), size=0), "cannot have 0 bytes"),
    "negative dimension": (with_entry(shape=((1 << 64) - 2,)), "cannot have"),
    "too many dimensions": (with_entry(shape=(1,) * 1000, size=4), "1000 dimensions"),
    "unknown rank": (with_entry(more=w.field(2, w.field(3, 1))), "unknown number"),
    "slices": (with_entry(more=w.field(7, b"")), "slices"),
    "group": (with_entry(more=b"\x4b"), "wire type 3"),
    "wrong wire type": (with_entry(more=b"\x08\x01\x0a\x00"), "field 1"),
    "field past the end": (with_entry(more=b"\x7a\x7f"), "field 15"),
    "field length huge": (with_entry(more=b"\x7a" + w.varint(HUGE)), "field 15"),
    "checksum cut off": (with_entry(more=b"\x35\0"), "field 6"),
}


@pytest.mark.parametrize("damage", FORGED)
def test_forged_files_with_right_checksums_are_refused_at_no_cost(tmp_path, damage):
    data, message = FORGED[damage]
    prefix = tmp_path / "model.ckpt-7"
    Path(f"{prefix}.index").write_bytes(data)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(8))
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(CheckpointError, match=message) as e:
            TFBundle(prefix)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < 5
    assert "model.ckpt-7" in str(e.value)


def test_the_forgeries_come_from_a_file_that_is_accepted(tmp_path):
    prefix = tmp_path / "model.ckpt-7"
    Path(f"{prefix}.index").write_bytes(with_entry(crc=w.masked(bytes(8)), more=w.field(15, b"new")))
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(8))
    assert TFBundle(prefix).read("x").tolist() == [0, 0]


def test_an_index_of_impossible_size_is_not_read(bundle):
    os.truncate(f"{bundle}.index", 100 << 30)
    with pytest.raises(CheckpointError, match="too many for an index"):
        TFBundle(bundle)


def test_a_data_file_that_is_missing_special_or_cut_later_is_named(bundle):
    data = Path(f"{bundle}.data-00000-of-00001")
    opened = TFBundle(bundle)
    os.truncate(data, 300)
    with pytest.raises(CheckpointError, match="00000-of-00001.*truncated"):
        opened.read("base_model/conv2d_9/kernel")
    data.unlink()
    with pytest.raises(CheckpointError, match="00000-of-00001.*No such file"):
        opened.read("base_model/conv2d_0/kernel")
    with pytest.raises(CheckpointError, match="00000-of-00001: no such file"):
        TFBundle(bundle)
    os.mkfifo(data)
    with pytest.raises(CheckpointError, match="00000-of-00001: no such file"):
        TFBundle(bundle)


def test_files_of_different_checkpoints_do_not_mix(bundle, tmp_path):
    other = {name: array + 1 for name, array in tensors().items()}
    second = w.write_bundle(tmp_path / "other" / "model.ckpt-7", other)
    shutil.copy(f"{second}.data-00000-of-00001", f"{bundle}.data-00000-of-00001")
    with pytest.raises(CheckpointError, match="checksum"):
        read_all(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "no line"),
        ('all_model_checkpoint_paths: "model.ckpt-7"', "no line"),
        ('model_checkpoint_path: "../model.ckpt-7"', "not a plain name"),
        ('model_checkpoint_path: ".."', "not a plain name"),
        ('model_checkpoint_path: ""', "not a plain name"),
        ('model_checkpoint_path: "/etc/model.ckpt-7"', "not a plain name"),
        (r'model_checkpoint_path: "\x2e\x2e\x2fmodel.ckpt-7"', "not a plain name"),
        ('model_checkpoint_path: "model.ckpt-7\0"', "not a plain name"),
        ('model_checkpoint_path: "model.ckpt-8"', "model.ckpt-8.index"),
    ],
)
def test_a_directory_is_entered_only_by_a_plain_name(bundle, text, message):
    listing = bundle.parent / "checkpoint"
    listing.unlink() if text is None else listing.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        TFBundle(bundle.parent)


def test_what_is_no_checkpoint_is_named(tmp_path):
    for name in ("absent", "model.pth", "a\0b"):
        if name == "model.pth":
            (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(CheckpointError, match="no TensorFlow checkpoint"):
            TFBundle(tmp_path / name)
