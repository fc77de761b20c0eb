"""What goes wrong, in words for the person who can mend it: each message is one line that says what came, what was
expected and what to do. The command line prints it and exits 1; anything else is a bug and keeps its traceback."""


class MbretrieveError(Exception):
    """The root of every error that a user can cause and mend."""


class MbretrieveWarning(UserWarning):
    """What is done otherwise than it was asked for, because it had to be: one line, said once."""


class ModelError(MbretrieveError):
    """A checkpoint that cannot be loaded, or a request the loaded model cannot serve."""


class IndexFormatError(MbretrieveError):
    """An index folder that is not one, is damaged, or was written by another format version."""


class IndexBusyError(MbretrieveError):
    """An index that cannot be written now: another process writes it, or its disk is full or read-only."""


class DataError(MbretrieveError):
    """Input that cannot be used: a malformed file, a duplicate id, a filter that does not parse."""


class MissingExtraError(MbretrieveError):
    """An optional dependency that is not installed; the message holds the exact command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {package}, which is not installed: pip install "mbretrieve[{extra}]"')
