"""`python -m wncli` is `wn`."""

from wncli.cli import main

main()
