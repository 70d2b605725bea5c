import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_hub.patterns import translate


def naive(pattern: list[str], path: list[str]) -> bool:
    """Folder by folder, trying everything."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(path)
        return any(naive(pattern[1:], path[i:]) for i in range(len(path)))
    return bool(path) and naive_name(pattern[0], path[0]) and naive(pattern[1:], path[1:])


def naive_name(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(naive_name(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and naive_name(pattern[1:], name[1:])


NAMES = st.text("ab*?", min_size=1, max_size=4).filter(lambda name: name != "**")
FOLDERS = st.lists(st.one_of(NAMES, st.just("**")), min_size=1, max_size=5)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(FOLDERS, st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6))
def test_equals_trying_everything(pattern: list[str], path: list[str]) -> None:
    expected = naive(pattern, path)
    found = re.compile(translate("/".join(pattern)), re.DOTALL).match("/".join(path))
    assert bool(found) == expected


@pytest.mark.parametrize("name", ["*a" * 40 + "b", "a*?" * 40 + "b", "*a*"])
@pytest.mark.parametrize("joint", ["/**/", "/"])
def test_time_grows_linearly_whatever_the_pattern(name: str, joint: str) -> None:
    pattern = re.compile(translate(joint.join([name] * 10) + "/**/x/**/*y*z"), re.DOTALL)
    started = time.process_time()
    for path in ("a" * 5000, "/".join(["a" * 250] * 16), "a/" * 2000, "x/" * 2000 + "y" * 100):
        assert not pattern.match(path)
    assert time.process_time() - started < 0.5
