"""A page that `SimilarityIndex.browse` serves while the program goes on."""

import threading
from contextlib import ExitStack
from html import escape

from ..index import SimilarityIndex
from .server import serving


class Browsing:
    """A page that is served until it is closed; also a context manager.

    Args and errors as of `serving`.

    Attributes:
        url: where to open it, with the token: whoever has it sees the photos.
    """

    def __init__(self, index: SimilarityIndex, host: str, port: int, token: str | None):
        self._open = ExitStack()
        self.url = self._open.enter_context(serving(index, host=host, port=port, token=token)).url
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop serving; once is enough. The index stays open."""
        self._open.close()
        self._closed.set()

    def wait(self) -> None:
        """Wait until it is closed, or Ctrl-C."""
        while not self._closed.wait(3600):
            pass

    def __enter__(self) -> "Browsing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<closed page of {self.url.partition('?')[0]}>" if self._closed.is_set() else f"<page at {self.url}>"

    def _repr_html_(self) -> str:
        if self._closed.is_set():
            return "This page was closed."
        url = escape(self.url)
        return f'<a href="{url}" target="_blank" rel="noopener">{url}</a>: served until it is closed'
