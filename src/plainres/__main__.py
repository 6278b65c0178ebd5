"""`python -m plainres`, which is how torchrun and srun start it."""

import sys

from plainres.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
