import bz2
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import time
import zipfile

import numpy as np
import pytest
from photo_formats import encoded, smooth
from PIL import Image

from simclr_hub import Embedder, Embedding, Failure, archives, embed, errors
from simclr_hub.archives import archive_images, is_archive
from simclr_hub.images import FileBytes, UnusableImage, load_image

IMAGES = {f"{folder}{i}.png": encoded(smooth(seed=i), "PNG") for i, folder in enumerate(("", "a/", "a/b/"))}
OTHERS = {"a.txt": b"text", "a/0.cls": b"7", "a/0.json": b"{}", "README": b"x"}
HOSTILE = ["../../up.png", "/etc/absolute.png", "a\x1b[31m\n.png", "C:\\x.png", "\u202egnp.png"]


def tar_of(members, mode="w", format=tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members, compression=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return buffer.getvalue()


def read(tmp_path, data, name="x.tar"):
    path = tmp_path / name
    path.write_bytes(data)
    return path, list(archive_images(path))


KINDS = {
    "x.tar": lambda m: tar_of(m),
    "y.tar": lambda m: tar_of(m, format=tarfile.GNU_FORMAT),
    "x.TAR.GZ": lambda m: tar_of(m, "w:gz"),
    "x.tgz": lambda m: tar_of(m, "w:gz"),
    "x.tar.bz2": lambda m: tar_of(m, "w:bz2"),
    "x.tar.xz": lambda m: tar_of(m, "w:xz"),
    "x.zip": lambda m: zip_of(m),
    "y.zip": lambda m: zip_of(m, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_images_of_an_archive_in_its_order(name, tmp_path):
    members = dict(sorted((IMAGES | OTHERS).items(), reverse=True))
    before = sorted(os.listdir(tmp_path))
    path, found = read(tmp_path, KINDS[name](members), name)
    assert is_archive(path) and is_archive(str(path))
    assert found == [FileBytes(f"{path}/{member}", IMAGES[member]) for member in sorted(IMAGES, reverse=True)]
    assert sorted(os.listdir(tmp_path)) == [*before, name]  # nothing was written


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_hostile_names_are_only_names(name, tmp_path):
    path, found = read(tmp_path, KINDS[name](dict.fromkeys(HOSTILE, IMAGES["0.png"])), name)
    assert [item.name for item in found] == [f"{path}/{n}" for n in (
        "../../up.png", "/etc/absolute.png", "a\\x1b[31m\\n.png", "C:\\x.png", "\\u202egnp.png")]  # fmt: skip
    assert all(item.data == IMAGES["0.png"] for item in found)
    assert os.listdir(tmp_path) == [name]


def test_links_devices_and_folders_in_a_tar_are_passed_over(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("0.png")
        info.size = len(IMAGES["0.png"])
        archive.addfile(info, io.BytesIO(IMAGES["0.png"]))
    path, found = read(tmp_path, buffer.getvalue())
    assert [item.name for item in found] == [f"{path}/0.png"]


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_an_archive_inside_is_one_failure(name, tmp_path):
    members = {
        "0.png": IMAGES["0.png"],
        "in/ner.zip": zip_of(IMAGES),
        "in.tar.gz": tar_of(IMAGES, "w:gz"),
        "z.rar": b"x",
    }
    _, found = read(tmp_path, KINDS[name](members), name)
    assert [type(item) for item in found] == [FileBytes, UnusableImage, UnusableImage, UnusableImage]
    for item in found[1:]:
        assert isinstance(item.error, errors.UnsupportedImageError) and "inside" in str(item.error)
        with pytest.raises(errors.UnsupportedImageError, match=r"unpack it first"):
            load_image(item)


def test_encrypted_members_are_one_failure_each(tmp_path):
    data = bytearray(zip_of(IMAGES | OTHERS))
    for start, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):  # set "encrypted" in every header but the first
        at = data.find(start, data.find(start) + 1)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(start, at + 1)
    _, found = read(tmp_path, bytes(data), "x.zip")
    assert [type(item) for item in found] == [FileBytes, UnusableImage, UnusableImage]
    assert isinstance(found[1].error, errors.UnsupportedImageError) and "its password first" in str(found[1].error)


def test_a_compression_that_is_not_known_is_one_failure(tmp_path):
    data = bytearray(zip_of(IMAGES))
    for start, offset in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        at = data.find(start)
        data[at + offset : at + offset + 2] = struct.pack("<H", 99)
    _, found = read(tmp_path, bytes(data), "x.zip")
    assert [type(item) for item in found] == [UnusableImage, FileBytes, FileBytes]
    assert "not supported" in str(found[0].error)


def test_a_damaged_member_is_one_failure(tmp_path):
    data = bytearray(zip_of(IMAGES, zipfile.ZIP_STORED))
    data[data.find(b"IDAT") + 20] ^= 1  # the checksum tells
    _, found = read(tmp_path, bytes(data), "x.zip")
    assert [type(item) for item in found] == [UnusableImage, FileBytes, FileBytes]
    assert "CRC" in str(found[0].error)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_a_member_that_is_too_large_is_one_failure(name, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 5000)
    members = {"0.png": bytes(5001), "1.png": bytes(4999), "2.txt": bytes(9000)}
    _, found = read(tmp_path, KINDS[name](members), name)
    assert [type(item) for item in found] == [UnusableImage, FileBytes]
    assert isinstance(found[0].error, errors.ImageTooLargeError) and "5,001 bytes" in str(found[0].error)


def test_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_SMALL", 1 << 20)
    large = {"a.png": bytes(3 << 20), "b.png": IMAGES["0.png"]}
    _, found = read(tmp_path, zip_of(large), "x.zip")
    assert [type(item) for item in found] == [UnusableImage, FileBytes]
    for name in ("x.tgz", "x.tar.bz2", "x.tar.xz"):
        _, found = read(tmp_path, KINDS[name](large), name)
        assert [type(item) for item in found] == [UnusableImage]  # it cannot be passed over without unpacking it
        assert isinstance(found[0].error, errors.ImageTooLargeError) and "200 times" in str(found[0].error)
    _, found = read(tmp_path, tar_of(large))
    assert len(found) == 2 and all(isinstance(item, FileBytes) for item in found)
    quine = gzip.compress(gzip.compress(bytes(50 << 20)))
    assert isinstance(read(tmp_path, quine, "q.tgz")[1][0].error, errors.ImageError)


def test_a_header_cannot_fill_the_memory(tmp_path, monkeypatch):
    kept = []
    real = archives._Unpacked.read
    monkeypatch.setattr(archives._Unpacked, "read", lambda self, n: kept.append(n) or real(self, n))
    for kind in (b"x", b"L", b"g"):  # attributes, a long name, attributes of all
        info = tarfile.TarInfo("h")
        info.type, info.size = kind, 8 << 20
        data = info.tobuf() + bytes(8 << 20) + tar_of({"0.png": IMAGES["0.png"]})
        kept.clear()
        _, found = read(tmp_path, data)
        assert len(found) == 1 and "header of more than" in str(found[0].error)
        assert sum(kept) < 2 << 20
        first = 512 + -(-len(IMAGES["0.png"]) // 512) * 512
        _, found = read(tmp_path, tar_of({"0.png": IMAGES["0.png"]})[:first] + data)
        assert [type(item) for item in found] == [FileBytes, UnusableImage]


def test_headers_that_promise_more_than_there_is(tmp_path):
    """A sparse map of PAX 1.0 with too few lines, and a long chain of long names: an end, and soon."""
    started = time.monotonic()
    attributes = b"".join(b"%d %s\n" % (len(t) + 4, t) for t in (b"GNU.sparse.major=1", b"GNU.sparse.minor=0"))
    pax = tarfile.TarInfo("p")
    pax.type, pax.size = b"x", len(attributes)
    info = tarfile.TarInfo("s.png")
    info.size = 512
    data = pax.tobuf() + attributes.ljust(512, b"\0") + info.tobuf() + b"99999999\n".ljust(512, b"1")
    _, found = read(tmp_path, data)
    assert [type(item) for item in found] == [UnusableImage]
    chain = tarfile.TarInfo("l")
    chain.type, chain.size = b"L", 1
    _, found = read(tmp_path, (chain.tobuf() + b"a".ljust(512, b"\0")) * 900 + info.tobuf())
    assert [type(item) for item in found] == [UnusableImage]
    assert time.monotonic() - started < 3


def test_a_sparse_member_is_one_failure(tmp_path):
    plain = tar_of({"0.png": IMAGES["0.png"]})
    for size, error in ((4096, errors.UnsupportedImageError), (1 << 30, errors.ImageTooLargeError)):
        sparse = bytearray(tarfile.TarInfo("hole.png").tobuf(tarfile.GNU_FORMAT))
        sparse[156:157] = b"S"
        sparse[124:136] = b"%011o\0" % 512
        sparse[386:410] = b"%011o\0" % 0 + b"%011o\0" % 512
        sparse[483:495] = b"%011o\0" % size
        sparse[148:156] = b" " * 8
        sparse[148:156] = b"%06o\0 " % sum(sparse)
        _, found = read(tmp_path, bytes(sparse) + bytes(512) + plain)
        assert [type(item) for item in found] == [UnusableImage, FileBytes]
        assert isinstance(found[0].error, error), found[0].error


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.tar.xz", "x.zip"])
def test_a_truncated_archive_gives_what_is_whole_and_one_failure(name, tmp_path):
    whole = KINDS[name](IMAGES)
    seen = set()
    for cut in range(0, len(whole) - 1, 499):
        _, found = read(tmp_path, whole[:cut], name)
        good = [item for item in found if isinstance(item, FileBytes)]
        bad = [item for item in found if isinstance(item, UnusableImage)]
        assert [item.data for item in good] == list(IMAGES.values())[: len(good)]
        if len(good) == 3 and not bad:
            assert len(whole) - cut < 12_000  # only the padding or a checksum at the end is missing
        else:
            assert len(bad) == 1 and isinstance(found[-1], UnusableImage), cut
            assert isinstance(bad[0].error, errors.CorruptImageError), cut
        seen.add(len(good))
    assert name == "x.zip" or len(seen) > 1


def test_what_is_no_archive(tmp_path):
    for name in ("x.tar", "x.zip", "x.tgz"):
        for data in (b"", b"text" * 1000, IMAGES["0.png"]):
            _, found = read(tmp_path, data, name)
            assert [type(item) for item in found] == [UnusableImage]
            assert isinstance(found[0].error, errors.CorruptImageError) and name in str(found[0].error)
    (found,) = archive_images(tmp_path / "none.zip")
    assert isinstance(found.error, errors.UnreadableImageError) and "No such file" in str(found.error)
    (tmp_path / "folder.tar").mkdir()
    (found,) = archive_images(tmp_path / "folder.tar")
    assert isinstance(found.error, errors.UnreadableImageError)
    assert not is_archive("a.jpg") and not is_archive(b"a.zip") and not is_archive(3)


def test_damaged_archives_never_raise():
    """Mutants of every kind: images, failures, and an end."""
    rng = random.Random(0)
    path = f"/dev/shm/{os.getpid()}-" if os.path.isdir("/dev/shm") else f"./{os.getpid()}-"
    counts = {FileBytes: 0, UnusableImage: 0}
    for name, make in KINDS.items():
        good = make(IMAGES | OTHERS)
        try:
            for _ in range(150):
                data = bytearray(good)
                for _ in range(rng.choice((1, 2, 20))):
                    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(512)
                    data[at] = rng.choice((0, 255, 48, rng.randrange(256)))
                with open(path + name, "wb") as file:
                    file.write(data)
                for item in archive_images(path + name):
                    counts[type(item)] += 1
        finally:
            os.unlink(path + name)
    assert min(counts.values()) > 200


def test_memory_stays_small_over_a_large_shard(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({f"{i}.png": bytes(100) for i in range(3000)}))
    images = archive_images(path)
    for _ in range(2000):
        next(images)
    frame = images.gi_yieldfrom.gi_frame
    assert len(frame.f_locals["archive"].members) <= 1
    images.close()


def test_archives_where_images_are_taken(tmp_path, tiny_model):
    members = {"0.png": IMAGES["0.png"], "broken.png": b"text", "in.zip": b"", "a/1.png": IMAGES["a/1.png"]}
    for name in ("x.tar", "x.zip"):
        path, _ = read(tmp_path, KINDS[name](members), name)
        items = list(Embedder(tiny_model).stream(archive_images(path)))
        assert [type(i) for i in items] == [Embedding, Failure, Failure, Embedding]
        assert items[3].source.name == f"{path}/a/1.png"
        with pytest.raises(errors.UnsupportedImageError, match="broken.png"):
            embed(path, model=tiny_model)
        good, _ = read(tmp_path, KINDS[name](IMAGES), f"good-{name}")
        rows = embed(good, model=tiny_model)
        assert np.array_equal(rows, embed(list(IMAGES.values()), model=tiny_model))
        assert np.array_equal(rows, embed(str(good), model=tiny_model))


def test_the_openers_know_their_files(tmp_path):
    for pack in (gzip.compress, bz2.compress, lzma.compress):  # by content, whatever the suffix
        _, found = read(tmp_path, pack(tar_of(IMAGES)), "x.tar")
        assert len(found) == 3
    assert Image.open(io.BytesIO(IMAGES["0.png"])).size == (96, 64)


def test_an_image_that_the_archive_s_end_cuts_is_never_given(tmp_path):
    data = encoded(smooth(), "PNG")
    whole = tar_of({"0.png": data, "1.png": data + bytes(1000)})
    path, found = read(tmp_path, whole[: whole.rindex(data) + len(data) + 10])
    assert [type(item) for item in found] == [FileBytes, UnusableImage]
    assert "damaged archive" in str(found[1].error) and str(path) in str(found[1].error)
