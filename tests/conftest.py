"""Before torch is imported: one thread a test process, because there is a process a core; and no network."""

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

# Nothing is timed: on a busy machine an example may take a second that takes a millisecond on a quiet one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

COUNTED = "counted"


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Give a test what it says its counts to: a line at the end of the run, whoever passed and however quietly."""
    return lambda line: record_property(COUNTED, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # By way of reports, which pytest-xdist brings here from the processes that run the tests.
    lines = [
        f"{report.nodeid.rsplit('::')[-1]}: {line}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, line in report.user_properties
        if name == COUNTED
    ]
    if lines:
        terminalreporter.section("counts")
        for line in sorted(lines):
            terminalreporter.line(line)
