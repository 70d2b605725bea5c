"""The command line; see `simclr-hub --help`."""


def main() -> None:
    """Entry."""
