"""In a network namespace: a Milvus is killed while parts are loaded, started again, and asked for what it took."""

import multiprocessing
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]


def main(parts: str, folder: Path) -> None:
    import vectors_child
    from milvus_server import milvus

    from simclr_hub.errors import VectorServerError
    from simclr_hub.parts.storage import Folder
    from simclr_hub.vectors.connect import connect
    from simclr_hub.vectors.load import load_parts
    from simclr_hub.vectors.rows import read_ids

    folder.mkdir()
    told = folder / "told"
    told.write_text("")
    with milvus(folder / "data") as running:
        child = multiprocessing.get_context("spawn").Process(
            target=vectors_child.load, args=(parts, running.url, str(told))
        )
        child.start()
        while child.is_alive() and len(told.read_text().split()) < 5:
            time.sleep(0.01)
        running.kill()
        child.join()
        running.start()
        end = time.monotonic() + 300
        while True:  # it comes back when its old session has ended
            try:
                server = connect(running.url)
                server.describe()
                break
            except VectorServerError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)
        acknowledged = told.read_text().split()
        lost = 0
        for part in acknowledged:
            ids = read_ids(Folder(parts), part)[0]
            lost += len(set(ids) - server.there(ids))
        count = load_parts(parts, server).count
        server.close()
    print(f"{lost} lost of {100 * len(acknowledged)}, {count} at the end")
    raise SystemExit(0 if acknowledged and count == 4000 else 1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
