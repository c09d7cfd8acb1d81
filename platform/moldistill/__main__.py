"""`python -m moldistill` is the command line."""

from moldistill.cli import main

main()
