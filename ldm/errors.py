"""The exceptions that end a command with one line instead of a traceback."""


def in_one_line(message: str) -> str:
    """The lines of a message one after another; spaces within a line, as a name may have, stay."""
    return " ".join(line.strip() for line in message.splitlines())


class InputError(ValueError):
    """Bad input: the message names the thing, the offending value and the remedy, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(in_one_line(message))


class Interrupted(Exception):
    """A signal asked the run to stop, which has kept its state where it keeps any; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
