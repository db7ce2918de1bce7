"""The one exception that stands for a mistake of the user's."""


class InputError(ValueError):
    """Bad input: the message names the thing, the offending value and the remedy, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Interrupted(Exception):
    """A signal asked to stop, and the state was kept; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
