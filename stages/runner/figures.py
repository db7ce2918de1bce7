"""Figures as files that are the same on every run."""

import io
import os
from typing import Any

# told apart by the colour-blind (after Okabe & Ito) and in grey by their strokes; contrast to white at least 4.5
COLOURS = "#0072b2", "#b34700", "#00734f", "#8f3a74", "#555555", "#000000"
STROKES = "-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches. Texts are as they are written: a $ in a name begins no formula."""
    os.environ["MPLBACKEND"] = "agg"  # not that of a notebook, which may not be here
    import matplotlib.figure  # takes a second, for which --help should not wait

    cycler = matplotlib.cycler  # type: ignore[attr-defined] # which its stubs leave out
    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=COLOURS, linestyle=STROKES)
    matplotlib.rcParams["text.parse_math"] = False
    matplotlib.rcParams["svg.fonttype"] = "none"  # texts stay texts: a browser has the letters of every script
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def png_of(figure: Any) -> bytes:
    """The PNG file of a figure, without the date and the version that matplotlib would add."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
