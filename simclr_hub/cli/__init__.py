"""`simclr-hub`: thin commands that parse, call the library and print; each is loaded when it runs.

Exit codes: 0 done, 1 fatal, 2 usage, 3 done but some photos could not be read, 130 stopped by
Ctrl-C, 143 by SIGTERM.
"""

import importlib
import io
import os
import sys
import traceback
from typing import Any

import click

from ._output import echo, tell_misuse, warnings_and_logs

#: Command -> module below this package that defines it, with the command's name as the function's; what it does, which
#: `--help` lists without loading any of them.
COMMANDS = {
    "demo": ("demo", "Index the sample photos, search them, write gallery.html."),
    "index": ("index", "Create an index of a folder, or bring it up to date."),
    "search": ("search", "Find the photos in INDEX that are most similar to QUERY."),
    "browse": ("browse", "Serve a page to look at photos, search and review duplicates."),
    "status": ("index", "Show what INDEX holds and what made it."),
    "failures": ("index", "List the photos that could not be read, and why."),
    "missing": ("index", "List the photos that were not there at the last sync."),
    "prune": ("index", "Forget the photos that are missing."),
    "duplicates": ("duplicates", "Find the copies in INDEX, and say which to keep."),
    "calibrate": ("duplicates", "Measure the thresholds of `duplicates` for the model of INDEX."),
    "label": ("label", "Label the photos of INDEX by a few examples of each class."),
    "classify": ("label", "Label photos, or those of an index, with a classifier."),
    "check": ("index", "Check that INDEX is sound, and repair it if it is not."),
    "whiten": ("whiten", "Whiten INDEX in place, for better matches; no photo is read."),
    "export": ("index", "Write the photos of INDEX, with vectors, to a Parquet file."),
    "import": ("index", "Make a new index of what `export` or `parts run` wrote."),
    "embed": ("embed", "Write the features of images to a .npz or .parquet file."),
    "parts": ("parts", "Embed beyond one machine: plan, run and check parts."),
    "vectors": ("vectors", "Load parts into PostgreSQL or Milvus, and search there."),
    "models": ("models", "List the official checkpoints: accuracy, size, speed."),
    "convert": ("convert", "Make a TensorFlow or PyTorch checkpoint loadable."),
    "doctor": ("doctor", "Show what is installed, and whether it computes what it should."),
    "pretrain": ("train", "Pretrain an encoder by a recipe; resumes where it stopped."),
    "finetune": ("train", "Train a classifier from few labels; resumes where it stopped."),
    "distill": ("train", "Train a student on a teacher's predictions; no labels needed."),
    "evaluate": ("evaluate", "Measure how good a model's features are on labelled images."),
    "publish": ("publish", "Put a model on the Hub, with its card and code."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in COMMANDS.items()])


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
    from ._interrupts import INTERRUPTED, ended_by_signals, leave

    try:
        with ended_by_signals(), warnings_and_logs():
            code = cli.main(args, prog_name="simclr-hub", standalone_mode=False)
    except click.exceptions.Exit as e:
        code = e.exit_code
    except click.ClickException as e:
        code = tell_misuse(e)
    except (click.Abort, KeyboardInterrupt):
        echo("stopped; what was recorded is kept", err=True)
        code = INTERRUPTED
    except (SimCLRHubError, OSError) as e:
        echo(f"error: {e}", err=True)
        code = 2 if isinstance(e, OutputError) else 1
    except Exception as e:  # a fault of this package, whole for a report
        for part in traceback.format_exception(e):
            for line in part.rstrip("\n").split("\n") if part.startswith("  File ") else [part.rstrip("\n")]:
                echo(line, err=True)
        code = 1
    leave(code if isinstance(code, int) else 0)
