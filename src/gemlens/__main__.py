"""`python -m gemlens`: the command line."""

from gemlens.cli.main import main

main()
