"""Progress bars that behave in a terminal and in a log file."""

import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from stages.runner.processes import RANK


def bar(total: int | None, unit: str, label: str, initial: int = 0, items: Iterable[Any] | None = None) -> tqdm:
    """A tqdm bar on standard error; in a log file it is one line every 20 seconds. Only the first process shows it."""
    terminal = {"file": sys.stderr, "mininterval": 0.2, "dynamic_ncols": True}
    how = terminal if sys.stderr.isatty() else {"file": SimpleNamespace(write=_write_line), "mininterval": 20}
    return tqdm(items, label, total, initial=initial, unit=unit, unit_scale=True, disable=RANK > 0, **how)


def track(items: Iterable[Any], total: int, unit: str, label: str) -> tqdm:
    """Pass items on, and count them."""
    return bar(total, unit, label, items=items)


def _write_line(text: str) -> None:
    """Write a state of the bar as a line of its own."""
    if text := text.strip("\r\n "):
        print(text, file=sys.stderr, flush=True)
