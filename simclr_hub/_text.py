"""What of a text may be shown: no character that a terminal obeys, no secret of a URL."""

import re

#: A URL in a sentence: scheme, slashes (one is enough: a URL taken for a path loses the other), and the rest. Found in
#: linear time, since the sentence may be a stranger's.
_URL = re.compile(r"([a-z0-9+.-]{2,15}:/+)(\S*)", re.IGNORECASE)
_END_MARKS = ":;,)'\"`"
_HOST = re.compile(r"(?:\[[^\[\]]*\]|[^:\[\]]*)(:\d{0,5})?")


def printable(text: str) -> str:
    """Return a text with whatever is not printable, line ends too, as an escape; backslashes stay as they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shown_url(url: str) -> str:
    """Return a URL for messages, printable: without user, password and fragment, with "..." for a query."""
    scheme, _, rest = url.partition(":")
    name = rest.lstrip("/")
    return printable(f"{scheme}:{rest[: len(rest) - len(name)]}{_without_secrets(name)}")[:200]


def shown(text: str) -> str:
    """Return a text for people: printable, and each URL in it without its secrets; what is so already stays."""
    text = printable(text)
    return _URL.sub(_shown_in_sentence, text) if ":/" in text else text


def _shown_in_sentence(found: re.Match[str]) -> str:
    url = found[2].rstrip(_END_MARKS)
    return found[1] + _without_secrets(url) + found[2][len(url) :]


def _without_secrets(rest: str) -> str:
    """Return what follows a URL's slashes without its secrets; "..." where it is not clear where a password ends."""
    before, _, _ = rest.partition("#")
    before, query, _ = before.partition("?")
    authority, slash, path = before.partition("/")
    _, user, host = authority.rpartition("@")
    found = _HOST.fullmatch(host)
    # A password may hold "/", "?" and "#", although it must not: "user:pass/word@host".
    if not found or ((user or found[1]) and "@" in rest[len(authority) :]):
        return "..."
    return host + slash + path + "?..." * bool(query)
