"""`python -m alignment` is the command `alignment`."""

from alignment.cli.main import main

main()
