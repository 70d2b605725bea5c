"""Patterns for paths as regular expressions that match in linear time, whatever the pattern and the name."""

import re


def translate(pattern: str) -> str:
    """Return a pattern for paths as a regular expression.

    `*`, `?` and `[...]` stay within a folder, `**` stands for any folders, also none.
    """
    folders = pattern.split("/")
    runs: list[list[str]] = [[]]  # of folders between two `**`
    for at, folder in enumerate(folders):
        if folder != "**":
            runs[-1].append(_translate_name(folder))
        elif runs[-1] or at == 0:  # `**/**` is one
            runs.append([])
    first, *others = ("/".join(run) for run in runs)
    if not others:
        return rf"{first}\Z"
    *middle, last = others
    # The first place at which a run matches leaves the most for the rest: (?>...) never looks for another.
    between = "".join(rf"(?>(?:[^/]*/)*?{run}/)" for run in middle)
    end = rf"(?:[^/]*/)*{last}" if last else ".*"
    return rf"{first}{'/' if runs[0] else ''}{between}{end}\Z"


def _translate_name(pattern: str) -> str:
    """Return the pattern of one name."""
    parts, i = [""], 0  # between two stars
    while i < len(pattern):
        char = pattern[i]
        if char == "*":
            if parts[-1] or len(parts) == 1:
                parts.append("")
        elif char == "[" and (end := pattern.find("]", i + 2 + pattern.startswith("!", i + 1))) > 0:
            inside = pattern[i + 1 : end]
            no = inside.startswith("!")
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[no:]).replace("--", "-\\-")
            parts[-1] += f"(?!/)[{'^' if no else ''}{inside}]"
            i = end
        else:
            parts[-1] += "[^/]" if char == "?" else re.escape(char)
        i += 1
    first, *others = parts
    if not others:
        return first
    *middle, last = others
    return first + "".join(rf"(?>[^/]*?{part})" for part in middle) + f"[^/]*{last}"
