"""``python -m ppgen``: the command line."""

from ppgen.cli import main

main()
