"""`python -m hubsync` is the command line."""

from hubsync.cli import main

main()
