"""`python -m holdfast`: the same command as the console script `holdfast`."""

from .bench.cli import main

main()
