"""Entry point of `python -m plainres`, which torchrun and srun use."""

import sys

from plainres.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
