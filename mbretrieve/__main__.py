"""``python -m mbretrieve``, where the script is not on the path. Python then imports from the current folder first."""

import sys

from mbretrieve.cli import main

sys.exit(main())
