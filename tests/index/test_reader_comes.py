"""A photo whose reader was not installed is a failure, and tried again once it is."""

import sys
from pathlib import Path

import pytest
from photo_formats import encoded, smooth


@pytest.mark.usefixtures("settled")
def test_a_photo_is_tried_again_when_its_reader_is_there(photos: Path, index, monkeypatch) -> None:
    (photos / "new.heic").write_bytes(encoded(smooth(), "HEIF"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        for _ in range(2):
            report = index.sync(photos)
            assert report.failed == 1
            assert [error for _, error in index.failures() if "pip install" in error]
    report = index.sync(photos)
    assert (report.failed, report.embedded) == (0, 1)
    assert not index.failures()
