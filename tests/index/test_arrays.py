import os
from pathlib import Path

import numpy as np
import pytest

from simclr_hub.index.search.arrays import BLOCK, ArrayFile, ArrayWriter, DamagedArraysError, Spool, StringSpool


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, str, dict[str, np.ndarray]]:
    """A file of several blocks, what opens it, and what is in it."""
    random = np.random.default_rng(0)
    arrays = {
        "vectors": random.normal(size=(3000, 20)).astype(np.float32),
        "empty": np.empty(0, np.int64),
        "numbers": random.integers(0, 100, 7),
        "bytes": random.integers(0, 256, 3 * BLOCK + 5, dtype=np.uint8),
    }
    path = tmp_path / "file"
    with open(path, "wb") as file:
        writer = ArrayWriter(file)
        for name, values in arrays.items():
            pieces = [values[at : at + 700] for at in range(0, len(values), 700)]
            writer.add(name, pieces, values.dtype.str, values.shape[1:])
        sha256 = writer.finish({"x": [1, "a"]})
    return path, sha256, arrays


def test_what_is_written_is_read(written: tuple[Path, str, dict[str, np.ndarray]]) -> None:
    path, sha256, arrays = written
    file = ArrayFile(path, sha256)
    assert file.about == {"x": [1, "a"]} and list(file._sections) == list(arrays) and "other" not in file
    for name, values in arrays.items():
        np.testing.assert_array_equal(file.array(name).all(), values)
        assert len(file.array(name)) == len(values)
    file.verify()
    with pytest.raises(ValueError, match="read-only"):
        file.array("vectors").all()[0] = 1


def test_every_damaged_byte_is_noticed_by_who_uses_it_and_by_nobody_else(
    written: tuple[Path, str, dict[str, np.ndarray]],
) -> None:
    path, sha256, arrays = written
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        at = int(random.integers(len(data)))
        path.write_bytes(data[:at] + bytes([data[at] ^ int(random.integers(1, 256))]) + data[at + 1 :])
        noticed = False
        try:
            file = ArrayFile(path, sha256)
        except DamagedArraysError:
            continue
        with pytest.raises(DamagedArraysError, match="not what was written"):
            ArrayFile(path, sha256).verify()
        for name, values in arrays.items():
            rows = np.arange(len(values))
            for some in np.array_split(rows, 5):
                try:
                    found = file.array(name).rows(some)[some]
                except DamagedArraysError:
                    noticed = True
                else:
                    np.testing.assert_array_equal(found, values[some])
        assert noticed or not any(data[at] in (v,) for v in ())  # between arrays nobody looks


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 5000, -1, -8, -9])
def test_a_file_that_was_cut(written: tuple[Path, str, dict[str, np.ndarray]], size: int) -> None:
    path, sha256, _ = written
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(DamagedArraysError):
        ArrayFile(path, sha256)


def test_another_file_of_the_same_kind(written: tuple[Path, str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    with open(tmp_path / "other", "wb") as file:
        writer = ArrayWriter(file)
        writer.add("vectors", [np.zeros((3000, 20), np.float32)], "<f4", (20,))
        writer.finish({})
    with pytest.raises(DamagedArraysError):
        ArrayFile(tmp_path / "other", written[1])


def test_ranges_of_rows(written: tuple[Path, str, dict[str, np.ndarray]]) -> None:
    """Only the blocks of what is asked for are compared, also where a range covers several."""
    path, sha256, arrays = written
    file = ArrayFile(path, sha256)
    array = file.array("vectors")  # 240 kB
    array._row_bytes = array._row_bytes  # as it is
    array.rows(np.array([0, 5]))
    assert file._good.sum() >= 1
    data = file.array("bytes")
    data.rows(np.array([0, 10, len(arrays["bytes"])]), np.array([len(arrays["bytes"]), 10, len(arrays["bytes"])]))
    start = data._start // BLOCK
    assert file._good[start : start + 4].all()


@pytest.mark.parametrize("on_disk", [False, True])
def test_strings_in_another_order(tmp_path: Path, on_disk: bool) -> None:
    strings = [b"", b"abc", b"\0", b"\xff" * 70_000, b"d"]
    spool = StringSpool(tmp_path if on_disk else None)
    spool.add(strings[:2])
    spool.add([])
    spool.add(strings[2:])
    order = np.array([3, 0, 4, 1])
    ordered = spool.all(order)
    expected = [strings[i] for i in order]
    assert spool.all().take(np.arange(5)) == strings and ordered.take(np.arange(4)) == expected
    assert list(tmp_path.iterdir()) == []  # its file has no name
    with (tmp_path / "a").open("wb") as file:
        writer = ArrayWriter(file)
        ordered.write(writer, "ordered")
        writer.add_bytes("bytes", lambda put: [put(b"x" * 100), put(b"yz")])
        sha256 = writer.finish({})
    found = ArrayFile(tmp_path / "a", sha256)
    assert found.strings("ordered").take(np.arange(4)) == expected
    assert found.array("bytes").all().tobytes() == b"x" * 100 + b"yz"


def test_an_empty_spool(tmp_path: Path) -> None:
    assert Spool(tmp_path).all("S32").shape == (0,) and len(StringSpool().all()) == 0
