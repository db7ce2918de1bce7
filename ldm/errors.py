"""The one exception that stands for a mistake of the user's."""


class InputError(ValueError):
    """Bad input: the message names the thing, the offending value and the remedy, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
