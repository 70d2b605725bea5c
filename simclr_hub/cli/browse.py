"""`browse`: a local page to look at an index's photos, search by clicking and review duplicates."""

import threading
import webbrowser
from pathlib import Path

import click

from ..index import SimilarityIndex
from ._output import echo


@click.command("browse")
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--open/--no-open", "opens", default=False, help="Also open the page in the browser.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a --token.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port to listen on; by default a free one.")
@click.option("--token", help="Secret that the address holds; by default a new one each time.")
@click.option("--model", help="The model that made INDEX; by default the one it names.")
def browse_command(index: Path, opens: bool, host: str, port: int, token: str | None, model: str | None) -> None:
    """Serve a page to look at the photos of INDEX, until Ctrl-C.

    It is served to this machine alone, and to whoever has the address with its token. Photos are only read.
    """
    from ..browse.server import serving

    with SimilarityIndex.open(index, model=model) as opened:
        try:
            with serving(opened, host=host, port=port, token=token) as address:
                echo(f"{len(opened):,} photos at")
                echo(address.url, secrets=True)
                echo("Ctrl-C ends it.")
                if opens:
                    webbrowser.open(address.url)
                threading.Event().wait()
        except ValueError as e:
            raise click.UsageError(str(e)) from e
