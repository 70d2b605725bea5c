"""Archives from strangers: never more than was announced is unpacked, whatever they are packed with."""

import bz2
import io
import lzma
import struct
import tarfile
import zipfile
import zlib

import pytest
from photo_formats import encoded, smooth

from simclr_hub import archives, errors
from simclr_hub.archives import archive_images
from simclr_hub.images import FileBytes, UnusableImage

PNG = encoded(smooth(), "PNG")
BOMB = bytes(32 << 20)
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def zip_of(members: dict[str, bytes], method: int) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return bytearray(buffer.getvalue())


def announce(data: bytearray, size: int, crc: int | None = None, *, headers=(b"PK\x01\x02", b"PK\x03\x04")) -> None:
    """Have the first member's headers tell another size, and checksum."""
    for start, at_crc, at_size in ((b"PK\x01\x02", 16, 24), (b"PK\x03\x04", 14, 22)):
        if start in headers:
            at = data.find(start)
            data[at + at_size : at + at_size + 4] = struct.pack("<I", size)
            if crc is not None:
                data[at + at_crc : at + at_crc + 4] = struct.pack("<I", crc)


@pytest.fixture
def read(tmp_path):
    def read(data: bytes, name: str = "x.zip") -> list:
        (path := tmp_path / name).write_bytes(data)
        return list(archive_images(path))

    return read


@pytest.fixture
def made(monkeypatch):
    """How many bytes each piece had that a decompressor made."""
    sizes: list[int] = []

    def counted(new):
        class Counted:
            def __init__(self, *args, **kwargs):
                self._inner = new(*args, **kwargs)

            def decompress(self, *args, **kwargs):
                sizes.append(len(piece := self._inner.decompress(*args, **kwargs)))
                return piece

            def __getattr__(self, name):
                return getattr(self._inner, name)

        return Counted

    for module, name in ((bz2, "BZ2Decompressor"), (lzma, "LZMADecompressor"), (zlib, "decompressobj")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return sizes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("right_checksum", [True, False])
def test_a_member_gives_no_more_than_it_announces(method, right_checksum, read, made):
    data = zip_of({"bomb.png": BOMB, "good.png": PNG}, METHODS[method])
    announce(data, 1000, zlib.crc32(BOMB[:1000]) if right_checksum else None)
    made.clear()
    first, second = read(data)
    if not (right_checksum and method in ("stored", "deflate")):  # of which zipfile reads the beginning as it is
        assert isinstance(first, UnusableImage) and isinstance(first.error, errors.CorruptImageError)
        assert "damaged in the archive" in str(first.error)
    else:
        assert len(first.data) == 1000
    assert second == FileBytes(second.name, PNG)
    assert sum(made) < 3 * (4096 + len(PNG)), "more was unpacked than announced"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", ["less", "more", "another"])
def test_a_member_that_is_not_what_it_announces_is_a_failure(method, change, read):
    data = zip_of({"a.png": PNG, "b.png": PNG}, METHODS[method])
    sizes = {"less": len(PNG) + 1, "more": len(PNG) - 1, "another": len(PNG)}
    announce(data, sizes[change], 1 if change == "another" else None)
    first, second = read(data)
    assert isinstance(first, UnusableImage) and second.data == PNG


@pytest.mark.parametrize("method", METHODS)
def test_what_the_local_header_tells_is_not_believed(method, read):
    data = zip_of({"a.png": PNG}, METHODS[method])
    announce(data, 1 << 31, 7, headers=(b"PK\x03\x04",))
    assert [item.data for item in read(data)] == [PNG]


def test_a_window_larger_than_the_member_is_not_made(read, monkeypatch):
    """LZMA's header may ask for 4 GiB at once."""
    asked = []
    real = lzma.LZMADecompressor
    data = zip_of({"a.png": PNG}, zipfile.ZIP_LZMA)
    properties = data.find(b"a.png") + len("a.png") + 4
    data[properties + 1 : properties + 5] = b"\xff\xff\xff\xff"
    monkeypatch.setattr(lzma, "LZMADecompressor", lambda f, filters: asked.append(filters) or real(f, filters=filters))
    assert [item.data for item in read(data)] == [PNG]
    assert asked[0][0]["dict_size"] == max(4096, len(PNG))


def test_xz_that_asks_for_much_memory_is_one_failure(read):
    with lzma.LZMAFile(buffer := io.BytesIO(), "w", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]) as file:
        file.write(bytes(10))
    (found,) = read(buffer.getvalue(), "x.tar.xz")
    assert isinstance(found.error, errors.CorruptImageError) and "emory" in str(found.error)


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz"])
def test_a_packed_tar_is_unpacked_as_it_is_read(pack, read, made, monkeypatch):
    monkeypatch.setattr(archives, "_SMALL", 1 << 20)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{pack}") as archive:
        for name in ("good.png", "bomb.bin", "after.png"):
            content = BOMB if name == "bomb.bin" else PNG
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    made.clear()
    first, second = read(buffer.getvalue(), f"x.tar.{pack}")
    assert first.data == PNG and isinstance(second.error, errors.ImageTooLargeError)
    assert sum(made) < 6 << 20


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_packed_in_several_streams_it_is_read_on(pack, read):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))
    whole = buffer.getvalue()
    data = pack(whole[:700]) + pack(b"") + pack(whole[700:])
    assert [item.data for item in read(data, "x.tar")] == [PNG, PNG]
    (found,) = read(pack(whole)[:-40], "x.tar")[-1:]
    assert isinstance(found, (FileBytes, UnusableImage))


def test_members_that_share_their_bytes_are_refused(read):
    """A zip bomb without a high ratio: many entries for one file."""
    data = zip_of({"a.png": PNG, "b.png": PNG}, zipfile.ZIP_DEFLATED)
    start, end = data.find(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    entries = bytes(data[start:end])
    entry = entries[: entries.find(b"PK\x01\x02", 1)]
    repeated = bytes(data[:start]) + entries + entry * 50
    tail = bytearray(data[end:])
    tail[8:12] = struct.pack("<HH", 52, 52)
    tail[12:16] = struct.pack("<I", len(entries) + 50 * len(entry))
    found = read(repeated + bytes(tail))
    assert len(found) == 52
    good = [item for item in found if isinstance(item, FileBytes)]
    assert [item.data for item in good] == [PNG]  # b.png, which nothing overlaps
    assert all("another member's" in str(item.error) for item in found if item not in good)


def test_many_that_are_each_small_enough_are_bounded_together(read, monkeypatch):
    monkeypatch.setattr(archives, "_MUCH", 3 << 20)
    members = {f"{i}.png": bytes(1 << 20) for i in range(6)}
    found = read(zip_of(members, zipfile.ZIP_DEFLATED))
    assert [type(item) for item in found] == [FileBytes] * 3 + [UnusableImage] * 3
    assert "200 times" in str(found[-1].error)
    assert all(isinstance(item, FileBytes) for item in read(zip_of(members, zipfile.ZIP_STORED)))


def test_memory_that_is_not_there_for_one_is_its_failure(read, monkeypatch):
    real = zipfile.ZipExtFile.read

    def hungry(self, n=-1):
        if self.name == "b.png":
            raise MemoryError
        return real(self, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", hungry)
    found = read(zip_of({"a.png": PNG, "b.png": PNG, "c.png": PNG}, zipfile.ZIP_DEFLATED))
    assert [type(item) for item in found] == [FileBytes, UnusableImage, FileBytes]
    assert "memory" in str(found[1].error)


def test_sizes_without_end_and_names_twice(read):
    data = zip_of({"a.png": PNG, "b.png": b""}, zipfile.ZIP_STORED)
    announce(data, (1 << 32) - 2)
    found = read(data)
    assert isinstance(found[0].error, errors.ImageTooLargeError) and found[1].data == b""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", PNG)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", PNG + b"x")
    assert [item.data for item in read(buffer.getvalue())] == [PNG, PNG + b"x"]
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.size = (1 << 63) - 1
        archive.addfile(info)
    assert isinstance(read(tar.getvalue(), "x.tar")[0].error, errors.ImageTooLargeError)
    assert isinstance(read(tar.getvalue().replace(b"a.png", b"a.bin"), "x.tar")[0].error, errors.CorruptImageError)
