"""`python -m smkit`: the `smkit` command, where its program is not on the path."""

import sys

from smkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
