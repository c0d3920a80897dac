"""``python -m pgeverything`` is the command line."""

from .cli import main

main(prog_name="pgeverything")
