"""Before torch is imported: one thread a test process, because there is a process a core; and no network."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

# Nothing is timed: on a busy machine an example may take a second that takes a millisecond on a quiet one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
