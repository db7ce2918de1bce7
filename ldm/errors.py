"""The exceptions that end a command with one line instead of a traceback."""


class InputError(ValueError):
    """Bad input: the message names the thing, the offending value and the remedy, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Interrupted(Exception):
    """A signal asked the run to stop, which has kept its state where it keeps any; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
