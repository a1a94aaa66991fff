"""`python -m hubsync` is the command line."""

from hubsync.cli.main import main

main()
