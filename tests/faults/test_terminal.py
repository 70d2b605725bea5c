"""Whatever a name, a path, a setting or an error holds: a terminal gets printable lines, a program the exact value."""

import ast
import io
import json
import logging
import re
import shutil
import time
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import rich.console
from index_fakes import make_photo

import simclr_hub.cli
from simclr_hub import SimilarityIndex
from simclr_hub._text import printable, shown, shown_url
from simclr_hub.cli._output import echo, print_json, warnings_and_logs
from simclr_hub.cli.doctor import _cache
from simclr_hub.images import describe
from simclr_hub.progress import progress_bar

Run = Callable[..., tuple[int, str, str]]
#: Clears the screen, writes a line of its own, turns the direction, C1, a line separator, a byte that is no text.
HOSTILE = "a\x1b[2J\rb\nforged: all is well\u202egpj\u2066\x9b31m\u2028\x7f\udcff"
CODE = Path(simclr_hub.cli.__file__).parent


def harmless(text: str) -> bool:
    """Whether each line holds only what a terminal prints, and none begins as the forged one does."""
    lines = text.split("\n")
    return all(line.isprintable() for line in lines) and not any(line.startswith("forged") for line in lines)


def test_one_line_for_one_call_and_backslashes_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    controls = "".join(map(chr, [*range(32), *range(127, 160)]))
    marks = "".join(c for c in map(chr, range(0x2000, 0x20A0)) if unicodedata.category(c) in ("Cf", "Zl", "Zp"))
    for text in (HOSTILE, controls, marks, "\ud800\udc80", "\U000e0001"):
        echo(text)
        echo(text, err=True)
        assert printable(printable(text)) == printable(text) and describe(text) == printable(text)
    out, err = capsys.readouterr()
    assert out == err and harmless(out) and len(out.splitlines()) == 5 and "\\x1b[2J\\rb\\nforged" in out
    echo(r"C:\new\x1b \u202e é ü 写真 🙂 עברית")
    assert capsys.readouterr().out == "C:\\new\\x1b \\u202e é ü 写真 🙂 עברית\n"


def test_json_is_exact_and_holds_nothing_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({HOSTILE: [HOSTILE]})
    out = capsys.readouterr().out
    assert harmless(out) and json.loads(out) == {HOSTILE: [HOSTILE]}


def test_all_that_the_commands_print_goes_through_one_function() -> None:
    """So that no call has to think of it."""
    found = []
    for path in sorted(CODE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if re.fullmatch(r"print|click\.(s?echo|style|print\w*)|.*\.(write|writelines|show)", called):
                    found.append(f"{path.name}: {called}")
    # The fixed line of a process that must not wait for its standard error; the two ways out; click's own help where a
    # command is missing.
    ways = ["_output.py: click.echo", "_output.py: click.echo", "_output.py: error.show"]
    assert found == ["_interrupts.py: os.write", *ways]


@pytest.fixture
def hostile(run: Run, tmp_path: Path, tiny_dir: Path) -> tuple[Path, Path, Path]:
    """An index, a photo and a broken photo, all below a folder of a hostile name, by a model of such a name."""
    folder = tmp_path / HOSTILE
    try:
        photo = make_photo(folder / f"photos/{HOSTILE}.png", 1)
    except (OSError, UnicodeError):
        pytest.skip("no such names on this file system")
    shutil.copyfile(photo, folder / f"photos/copy {HOSTILE}.png")
    broken = folder / f"photos/broken {HOSTILE}.jpg"
    broken.write_bytes(b"no image")
    model = shutil.copytree(tiny_dir, tmp_path / f"model {HOSTILE[:-1]}")  # safetensors opens text only
    index = folder / f"own{HOSTILE}.index"
    code, out, err = run("index", folder / "photos", "-o", index, "--model", model)
    assert code == 0 and harmless(out + err), (out, err)
    return index, photo, broken


def test_no_command_prints_what_a_terminal_obeys(
    run: Run, hostile: tuple[Path, Path, Path], tmp_path: Path, tiny_dir: Path
) -> None:
    index, photo, broken = hostile
    make_photo(tmp_path / "more/1.png", 2)
    for arguments in (
        ["status", index],
        ["failures", index],
        ["missing", index],
        ["check", index, "--deep"],
        ["search", index, photo, photo, "--html", f"p{HOSTILE}.html"],
        ["search", index, photo, "--path", HOSTILE],
        ["duplicates", index, "--html", f"d{HOSTILE}.html"],
        ["export", index, f"{HOSTILE}.parquet"],
        ["import", f"{HOSTILE}.parquet", f"{HOSTILE}.index"],
        ["index", tmp_path / "more", "-o", index, "--exclude", HOSTILE],
        ["status", index],
        ["embed", photo, broken, "-o", f"{HOSTILE}.npz", "--model", tiny_dir],
        # and what is wrong
        ["status", HOSTILE],
        ["status", index, f"--{HOSTILE}"],
        ["status", index, HOSTILE],
        [HOSTILE],
        ["search", index, HOSTILE],
        ["search", index, photo, "-k", HOSTILE],
        ["search", index, photo, "--where", HOSTILE],
        ["search", index, photo, "--where", f"{HOSTILE}=1"],
        ["search", index, photo, "--html", HOSTILE],
        ["duplicates", index, "--tier", HOSTILE],
        ["index", photo.parent, "-o", "new.index", "--model", HOSTILE],
        ["index", photo.parent, "-o", index, "--model", tiny_dir],
        ["index", HOSTILE, "-o", index],
        ["embed", HOSTILE, "-o", "a.npz", "--shard", HOSTILE],
        ["embed", photo, "-o", f"{HOSTILE}.txt"],
        ["embed", photo, "-o", "a.npz", "--layer", HOSTILE],
        ["models", "--max-params", HOSTILE],
        ["convert", HOSTILE, "out"],
        ["convert", "none", HOSTILE + "/out"],
        ["whiten", HOSTILE],
        ["whiten", index, "--with", HOSTILE],
        ["import", broken, "other.index"],
        ["pretrain", HOSTILE],
        ["pretrain", "tiny_imagenet_default", HOSTILE],
    ):
        _, out, err = run(*arguments)
        assert harmless(out + err) and out + err, arguments
    for page in (f"p{HOSTILE}.html", f"d{HOSTILE}.html"):
        assert harmless(Path(page).read_text(encoding="utf-8"))
    assert json.loads(run("failures", index, "--json")[1])[0]["path"] == str(broken)


def test_warnings_logs_and_faults_of_our_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def status(*_: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(HOSTILE, RuntimeWarning, stacklevel=1)
        logging.getLogger("simclr_hub.checkpoints.download").warning("%s: to be %s", HOSTILE, "read")
        raise ZeroDivisionError(HOSTILE)

    monkeypatch.setattr(SimilarityIndex, "open", status)
    handled = logging.StreamHandler(stream := io.StringIO())
    logging.getLogger().addHandler(handled)
    try:
        with pytest.raises(SystemExit) as exit, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", err := io.StringIO())
            simclr_hub.cli.main(["status", "x"])
    finally:
        logging.getLogger().removeHandler(handled)
    told = err.getvalue()
    assert exit.value.code == 1 and harmless(told) and told.startswith("warning: a\\x1b[2J")
    assert "Traceback" in told and "ZeroDivisionError: a\\x1b" in told
    assert harmless(stream.getvalue()) and "to be read" in stream.getvalue()
    show, factory = warnings.showwarning, logging.getLogRecordFactory()
    with warnings_and_logs():
        assert warnings.showwarning is not show
    assert (warnings.showwarning, logging.getLogRecordFactory()) == (show, factory)


def test_the_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a terminal nor rich's markup reads them: "[/x]" was an error, "[red]" a colour."""
    drawn = io.StringIO()
    console = rich.console.Console
    monkeypatch.setattr(
        rich.console, "Console", lambda **_: console(file=drawn, force_terminal=True, width=300, color_system=None)
    )
    with progress_bar(f"[/x] {HOSTILE}", 2, show=True) as advance:
        advance(1, 2, f"[red] {HOSTILE}")
        advance(1, 2)
    text = drawn.getvalue()
    assert "[red] a\\x1b[2J\\rb\\nforged" in text
    assert "\x1b[2J" not in text and "\u202e" not in text and "\x9b" not in text


def test_what_click_says_of_a_command_line_stays(run: Run) -> None:
    code, out, err = run("search", "i")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "Usage: simclr-hub search [OPTIONS] INDEX QUERY...",
        "Try 'simclr-hub search --help' for help.",
        "",
        "Error: Missing argument 'QUERY...'.",
    ]
    assert "demo" in "".join(run()[1:])
    assert click.exceptions.NoArgsIsHelpError.exit_code == 2


@pytest.mark.parametrize("command", ["pretrain", "publish"])
def test_examples_stand_in_lines_of_their_own(command: str, run: Run) -> None:
    out = run(command, "--help")[1]
    examples = re.findall(rf"^  simclr-hub {command} .*$", out, re.M)
    assert len(examples) >= 2 and "\\b" not in out and max(map(len, out.splitlines())) <= 80


# -- secrets of URLs

SECRET = "s3cr3t"
URLS = [
    f"http://user:{SECRET}@8.8.8.8/a.jpg",
    f"HTTPS://{SECRET}@host.invalid:443/a.jpg",
    f"http://user:p@{SECRET}@host.invalid/a.jpg",
    f"http://user:p/{SECRET}@host.invalid/a.jpg",
    f"http://user:12/{SECRET}@host.invalid/a.jpg",
    f"http://user:p?{SECRET}@host.invalid/a.jpg",
    f"http://user:p#{SECRET}@host.invalid/a.jpg",
    f"http://user:p%40{SECRET}@[::1]:80/a.jpg",
    f"http://[::1:{SECRET}/a.jpg",
    f"http://a:{SECRET}/a.jpg",
    f"http://user:{SECRET}\u2100@host/a.jpg",
    f"http://host.invalid/a.jpg#{SECRET}",
    f"http://host.invalid/a.jpg?token={SECRET}",
    f"http://host.invalid/a.zip?token={SECRET}",
    f"http://host.invalid/a.tar#?{SECRET}",
    f"http://127.0.0.1/a.jpg?{SECRET}#x",
    f"http://127.0.0.1/a.jpg?...{SECRET}",
    f"http://host.invalid/a b.jpg?x= {SECRET}",
]


@pytest.mark.parametrize("url", URLS)
def test_no_error_holds_a_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from simclr_hub.errors import UnreadableImageError
    from simclr_hub.images import load_image

    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: [(2, 1, 6, "", ("127.0.0.1", 9))])
    with pytest.raises(UnreadableImageError) as caught:
        load_image(url)
    error: BaseException | None = caught.value
    while error:
        assert SECRET not in f"{error} {error!r} {vars(error)}", type(error)
        error = error.__cause__ or error.__context__
    assert SECRET not in shown_url(url) + describe(url)


@pytest.mark.parametrize("url", [url for url in URLS if " " not in url])
def test_no_command_prints_a_secret(url: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a URL is taken for a path, and loses a slash."""
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: [(2, 1, 6, "", ("127.0.0.1", 9))])
    embed = ["embed", "x.jpg", "-o"]
    for arguments in (["status", url], ["export", "i", url], [*embed, url], [*embed, "a.npz", "--model", url]):
        code, out, err = run(*arguments)
        assert code and SECRET not in out + err, (arguments, err)
        assert SECRET not in shown(f"error: {url}: it is wrong")


def test_urls_are_told_without_secrets_in_results_too(
    run: Run, photos: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr_hub.images.fetch", lambda _: (photos / "a.png").read_bytes())
    assert run("index", photos, "--model", tiny_dir)[0] == 0
    url = f"https://example.org/photo.png?token={SECRET}#{SECRET}"
    search = ["search", "photos.index", url, "--not", url, "--not-weight", "0.1"]
    for arguments in ([*search, "--json"], [*search, "--html", "p.html"], ["search", "photos.index", url, url]):
        code, out, err = run(*arguments)
        assert code == 0 and out and SECRET not in out + err
    assert SECRET not in Path("p.html").read_text()
    assert (
        json.loads(run("search", "photos.index", url, "--json")[1])[0]["query"] == "https://example.org/photo.png?..."
    )
    monkeypatch.setattr("simclr_hub.images.fetch", lambda _: b"no image")
    code, out, err = run("embed", url, photos, "-o", "f.npz", "--model", tiny_dir, "--json")
    assert code == 0 and SECRET not in out + err and json.loads(out)["failed"][0]["path"].endswith("?...")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"https://user:{SECRET}@hub.example")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert _cache()["hub"] == "https://hub.example"


def test_what_is_no_secret_stays() -> None:
    for text in (
        "https://example.org:8080/a/b.jpg: not found",
        "https://medium.com/@user/photo@2x.jpg",
        "http://[2001:db8::1]:80/a.jpg",
        "error: /home/me/a@b.jpg: no such file?",
        "C:/Users/a@b/photo.jpg",
        "http://host/a.png?...: the server answered 404",
        "see https://example.org.",
        "note: /a/b#c?d",
    ):
        assert shown(text) == text


def test_long_texts_of_strangers_take_no_time() -> None:
    started = time.monotonic()
    for part in ("a.", "a:/", "(", "http://", "@", "?", "a@b:", "[", "\x1b"):
        shown(f"x:/{part * 300_000}:/ {part * 300_000}")
        shown_url(f"http://{part * 300_000}")
    assert time.monotonic() - started < 10
