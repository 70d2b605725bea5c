"""`check`, `export`, `import`, `index --moved-from`, and Ctrl-C, from the command line."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def index(run, photos, tiny_dir):
    assert run("index", photos, "--model", tiny_dir)[0] == 0
    return Path("photos.index")


def damage(index):
    with closing(sqlite3.connect(index / "store.sqlite3")) as db, db:
        db.execute("UPDATE vectors SET crc = crc + 1 WHERE rowid = 1")


def test_check_and_repair(run, index, photos, tiny_dir):
    code, out, _ = run("check", index)
    assert code == 0 and out.startswith("photos.index: sound\n  verified: ") and "6 vectors" in out
    assert "not verified: the photos themselves" in out
    damage(index)
    code, out, _ = run("check", index)
    assert code == 1 and "photos.index: damaged" in out and "does not match its checksum" in out
    assert "`simclr-hub check --repair` saves what is sound" in out
    code, out, _ = run("check", index, "--repair")
    assert code == 0 and "saved 5 vectors, 1 roots, 5 photos, 5 details" in out or "saved " in out
    assert "1 photos were lost: index their folders again" in out and "photos.index: sound" in out
    assert json.loads(run("index", photos, "--json")[1])["embedded"] == 1
    record = json.loads(run("check", index, "--json")[1])
    assert record["sound"] and record["verified"]["photos"] == 6 and record["problems"] == []


def test_a_deep_check_tells_of_the_photos(run, index, photos):
    code, out, _ = run("check", index, "--deep")
    assert code == 0 and "photos read again: 6 same" in out and "6 vectors embedded again" in out
    (photos / "0.jpg").unlink()
    code, out, _ = run("check", index, "--deep")
    assert code == 0 and "photos read again: 5 same, 1 missing" in out


def test_an_index_that_does_not_open_is_repaired(run, index):
    with open(index / "store.sqlite3", "r+b") as file:
        file.write(bytes(16384))
    assert run("status", index)[0] == 1
    assert run("check", index, "--repair")[0] == 0
    assert run("status", index)[0] == 0


def test_export_and_import(run, index, photos, tiny_dir):
    assert run("export", index, "out.parquet")[1] == "6 photos to out.parquet\n"
    assert run("import", "out.parquet", "other.index")[1] == "6 photos to other.index\n"
    assert json.loads(run("index", photos, "-o", "other.index", "--json")[1])["unchanged"] == 6
    code, _, err = run("export", index, "out.parquet")
    assert code == 1 and "out.parquet exists already" in err
    Path("bad.parquet").write_bytes(b"no")
    code, _, err = run("import", "bad.parquet", "new.index")
    assert code == 1 and "bad.parquet: damaged, or not a Parquet file" in err and not Path("new.index").exists()


def test_moved_photos(run, index, photos):
    moved = photos.rename(photos.with_name("elsewhere"))
    _, out, err = run("index", moved, "--moved-from", photos, "--json")
    report = json.loads(out)
    assert err == ""  # nothing is said of joining the index: it is the same folder
    assert (report["unchanged"], report["embedded"], report["missing"]) == (6, 0, 0)
    code, _, err = run("index", moved, "--moved-from", "nowhere")
    assert code == 1 and "not a photo folder of this index" in err


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(run, photos, tiny_dir, monkeypatch):
    def interrupt(self, folder, *, progress, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("simclr_hub.index.SimilarityIndex.sync", interrupt)
        code, _, err = run("index", photos, "-o", "my index", "--model", tiny_dir)
    assert code == 130
    assert err == f"stopped; 0 photos are in the index. Go on with: simclr-hub index {photos} -o 'my index'\n"
    assert json.loads(run("index", photos, "-o", "my index", "--json")[1])["embedded"] == 6


@pytest.mark.slow
def test_a_real_interrupt(tmp_path, tiny_dir):
    (tmp_path / "many").mkdir()
    for i in range(3000):
        Image.effect_noise((20, 20), 50 + i % 100).save(tmp_path / "many" / f"{i}.png")
    command = [sys.executable, "-c", "from simclr_hub.cli import main; main()"]
    slowly = """import time
from simclr_hub.cli import main
from simclr_hub.index import sync
read = sync.read_file
sync.read_file = lambda *a, **k: (time.sleep(0.01), read(*a, **k))[1]
main()"""  # or it could be done before the signal comes
    arguments = ["index", tmp_path / "many", "-o", tmp_path / "i.index", "--model", tiny_dir]
    process = subprocess.Popen([sys.executable, "-c", slowly, *arguments], stderr=subprocess.PIPE, text=True)
    while True:
        time.sleep(0.05)
        file = tmp_path / "i.index/store.sqlite3"
        if file.exists():
            with closing(sqlite3.connect(file, timeout=30)) as db:
                if db.execute("SELECT count(*) FROM photos").fetchone()[0] > 100:
                    break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "photos are in the index. Go on with: simclr-hub index" in err
    run = subprocess.run([*command, "check", tmp_path / "i.index"], capture_output=True, text=True)
    assert run.returncode == 0


@pytest.mark.slow
def test_names_that_are_no_text_go_through_a_pipe(index, photos, tmp_path):
    (photos / os.fsdecode(b"caf\xe9\x1b[31m.jpg")).write_bytes(b"no image")
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", "from simclr_hub.cli import main; main()"]
    for arguments in (
        ["index", photos, "--json"],
        ["failures", "photos.index"],
        ["failures", "photos.index", "--json"],
    ):
        run = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, stdin=subprocess.DEVNULL
        )
        assert run.returncode == 0 and b"Traceback" not in run.stderr and b"\x1b" not in run.stdout
    ((failure),) = json.loads(run.stdout)
    assert os.fsencode(failure["path"]).endswith(b"caf\xe9\x1b[31m.jpg")
