"""`simclr-hub`: thin commands that parse, call the library and print; each is loaded when it runs.

Exit codes: 0 done, 1 fatal, 2 usage, 3 done but some photos could not be read.
"""

import importlib
import io
import os
import sys
import traceback
from typing import Any

import click

from ._output import echo, tell_misuse, warnings_and_logs

#: Command -> module below this package that defines it, with the command's name as the function's.
COMMANDS = {
    "demo": "demo",
    "index": "index",
    "search": "search",
    "status": "index",
    "failures": "index",
    "prune": "index",
    "duplicates": "duplicates",
    "calibrate": "duplicates",
    "check": "check",
    "whiten": "whiten",
    "export": "export",
    "import": "export",
    "embed": "embed",
    "models": "catalog",
    "convert": "models",
    "doctor": "doctor",
    "pretrain": "train",
    "publish": "publish",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[name]}", __package__)
        command: click.Command = getattr(module, f"{name}_command")
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="simclr-hub")
def cli() -> None:
    """SimCLR features and photo search.

    Start with `simclr-hub demo`, then `simclr-hub index PHOTOS`.
    """


def main(args: list[str] | None = None) -> Any:
    """Run the command line; ends the process with its exit code."""
    # Weights load in a moment: transformers' own bars and reports would only hide our output.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that its encoding does not have
    from ..errors import OutputError, SimCLRHubError

    try:
        with warnings_and_logs():
            code = cli.main(args, prog_name="simclr-hub", standalone_mode=False)
    except click.exceptions.Exit as e:
        code = e.exit_code
    except click.ClickException as e:
        code = tell_misuse(e)
    except click.Abort:
        echo("stopped; what was recorded is kept", err=True)
        code = 130
    except (SimCLRHubError, OSError) as e:
        echo(f"error: {e}", err=True)
        code = 2 if isinstance(e, OutputError) else 1
    except Exception as e:  # a fault of this package, whole for a report
        for part in traceback.format_exception(e):
            for line in part.rstrip("\n").split("\n") if part.startswith("  File ") else [part.rstrip("\n")]:
                echo(line, err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
