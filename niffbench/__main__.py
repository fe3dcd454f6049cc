"""``python -m niffbench``: the command line of the interpreter that is named, wherever its scripts are."""

import sys

from niffbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
