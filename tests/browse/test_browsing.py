"""`index.browse()`: the page from Python."""

import builtins
import sys
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest

from simclr_hub import SimilarityIndex
from simclr_hub.errors import MissingExtraError, OutputError


def is_served(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(url, timeout=20) as answer:
            return b"simclr" in answer.read() or answer.status == 200
    except urllib.error.URLError:
        return False


def test_it_is_served_until_it_is_closed(index: SimilarityIndex) -> None:
    page = index.browse()
    assert is_served(page.url) and page.url in repr(page)
    page.close()
    page.close()
    assert not is_served(page.url) and "token" not in repr(page) and "closed" in page._repr_html_()
    assert len(index) > 0  # the index stays open


def test_a_block_closes_it_and_so_does_the_index(index: SimilarityIndex) -> None:
    with index.browse() as first, index.browse() as second:
        assert first.url != second.url and is_served(first.url) and is_served(second.url)
    assert not is_served(first.url)
    page = index.browse()
    index.close()
    assert not is_served(page.url)


def test_a_notebook_gets_a_link(index: SimilarityIndex) -> None:
    with index.browse(token="0123456789abcdef") as page:
        html = page._repr_html_()
    assert html.startswith('<a href="http://127.0.0.1:') and "/?token=0123456789abcdef" in html


def test_waiting_ends_when_it_is_closed(index: SimilarityIndex) -> None:
    with index.browse() as page:
        waiting = threading.Thread(target=page.wait)
        waiting.start()
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()


def test_what_cannot_be_served_is_one_clear_error(index: SimilarityIndex) -> None:
    with index.browse() as page:
        with pytest.raises(OutputError, match="choose another --port"):
            index.browse(port=int(page.url.split(":")[2].split("/")[0]))
    with pytest.raises(ValueError, match="16 or more"):
        index.browse(token="short")
    with pytest.raises(OutputError, match="token"):
        index.browse(host="0.0.0.0")


def test_without_the_extra_it_says_which(index: SimilarityIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("simclr_hub.browse.server", "simclr_hub.browse.browsing"):  # not all: others' names stay theirs
        monkeypatch.delitem(sys.modules, name, raising=False)
    original = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"uvicorn.*\[web\]"):
        index.browse()
