"""`python -m wncli` is `wn`."""

from wncli.cli import program

program()
