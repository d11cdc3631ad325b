"""The command line: the only room with Typer and Rich."""

import sys

from wncli.storage.signals import end_when_interrupted

# Before all other imports, in which Ctrl-C would show a traceback; but only where this is the
# program (`python -m wncli` does the same) and not imported by another, whose signals are its own.
if sys.argv[0].endswith("/wn"):
    end_when_interrupted()

from wncli.cli.edge import main, program

__all__ = ["main", "program"]
