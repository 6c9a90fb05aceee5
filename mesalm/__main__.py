"""Run the command line: `python -m mesalm` and `accelerate launch -m mesalm`."""

import sys

from mesalm.cli import main

if __name__ == "__main__":
    sys.exit(main())
