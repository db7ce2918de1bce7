"""Progress bars that behave in a terminal and in a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

from stages.launch import NUMBER

T = TypeVar("T")


def bar(total: int, unit: str, label: str, done: int = 0) -> tqdm:
    """A tqdm bar on standard error, from what is done already; in a log file it is one line every 20 seconds. One process shows it."""
    terminal = sys.stderr.isatty()
    file = sys.stderr if terminal else _Lines(sys.stderr)
    pace = 0.2 if terminal else 20
    return tqdm(total=total, initial=done, unit=unit, desc=label, file=file, mininterval=pace, dynamic_ncols=terminal, unit_scale=True, disable=NUMBER > 0)


def track(items: Iterable[T], total: int, unit: str, label: str, size: Callable[[T], int]) -> Iterator[T]:
    """Pass items on, counting `size(item)` units for each."""
    with bar(total, unit, label) as progress:
        for item in items:
            yield item
            progress.update(size(item))


class _Lines:
    """A text stream on which each state of the bar is a line of its own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self._file.write(text + "\n")

    def flush(self) -> None:
        self._file.flush()
