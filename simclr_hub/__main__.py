"""`python -m simclr_hub`: the command line, where its program is not on PATH."""

from .cli import main

if __name__ == "__main__":
    main()
