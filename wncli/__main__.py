"""`python -m wncli` is `wn`."""

from wncli.storage.signals import end_when_interrupted

end_when_interrupted()  # before all other imports, in which Ctrl-C would show a traceback

from wncli.cli import program  # noqa: E402

program()
