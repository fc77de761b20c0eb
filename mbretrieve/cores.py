"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """Return how many cores the system lets this process run on; all there are, where it does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
