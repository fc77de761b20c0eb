"""``python -m mbretrieve``."""

import sys

from mbretrieve.cli import main

sys.exit(main())
