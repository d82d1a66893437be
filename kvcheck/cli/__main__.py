"""`python -m kvcheck.cli`: the same as `kvcheck`."""

import sys

from kvcheck.cli import main

sys.exit(main())
