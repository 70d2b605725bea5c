"""Media that cannot be written, processes that fork, and files that are something else than their name says."""

import multiprocessing
import os
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from index_fakes import FakeEmbedder, make_photo

from simclr_hub.errors import IndexError_, IndexWriteError
from simclr_hub.index import SimilarityIndex, check_index


def test_a_read_only_mount(tmp_path: Path, photos: Path) -> None:
    """Searching, checking and exporting work; what writes says that it cannot."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        with SimilarityIndex.create(disk / "i", model=FakeEmbedder()) as index:
            index.sync(photos)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with SimilarityIndex.open(disk / "i", model=FakeEmbedder()) as index:
            assert index.search(photos / "a.png", k=1, with_self=True)[0].path == str(photos / "a.png")
            assert index.check(deep=True).photos["same"] == 4
            assert index.export(tmp_path / "out.parquet") == 4
            with pytest.raises(IndexWriteError):
                index.sync(photos)
        assert check_index(disk / "i").sound
        with pytest.raises(IndexWriteError):
            check_index(disk / "i", repair=True)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)  # a search maps its cache


class Numbers(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> int:
        return number


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_that_fork_while_an_index_is_open(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    loader = torch.utils.data.DataLoader(Numbers(), num_workers=2, multiprocessing_context="fork")
    assert sorted(int(number) for number in loader) == list(range(8))
    make_photo(photos / "new.png", 50)
    assert index.sync(photos).embedded == 1 and index.check().sound

    def use(pipe: Any) -> None:
        try:
            len(index)
            pipe.send("worked")
        except IndexError_ as e:
            pipe.send(str(e))

    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=use, args=(theirs,))
    child.start()
    assert "used in its fork" in ours.recv()
    child.join()
    assert len(index) == 5


def test_other_files_named_like_photos(index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their content decides; and no program is started for any of them."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.write(photos / "a.png", "a.png")
    contents = {
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "html": b"<!DOCTYPE html><script>alert(1)</script>",
        "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "zip": archive.getvalue(),
        "mvg": b"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 0,0 'https://example.org/x'\n",
        "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
    }
    for name, data in contents.items():
        (photos / f"{name}.jpg").write_bytes(data)

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"{arguments} was started")

    for name in ("posix_spawn", "system", "execve"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    report = index.sync(photos)
    assert (report.embedded, report.failed) == (4, len(contents))
    assert all("not an image" in why for _, why in index.failures())


@pytest.mark.parametrize("key", ["weights", "layer", "preprocessing", "precision", "decoder"])
def test_vectors_made_otherwise_are_not_mixed(tmp_path: Path, photos: Path, key: str) -> None:
    with SimilarityIndex.create(tmp_path / "i", model=FakeEmbedder(**{key: "one"})) as index:
        index.sync(photos)
    with pytest.raises(ValueError, match=f"{key} one.*{key} another"):
        SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder(**{key: "another"}))
