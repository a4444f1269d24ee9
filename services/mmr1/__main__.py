"""`python -m mmr1` is the `mmr1` command, for an environment whose scripts are not on PATH."""

import sys

from mmr1.cli import main

sys.exit(main())
