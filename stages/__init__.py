"""The stages of the pipeline: verbs that read, compute with `ldm`, and write."""

import sys
from importlib.util import find_spec
from pathlib import Path

_found = find_spec("ldm")  # a name that other projects have too
_places = [Path(place).resolve() for place in (_found and _found.submodule_search_locations) or []]
_root = Path(__file__).resolve().parents[1]
if _root / "ldm" not in _places:
    _other = _found.origin or _places[0] if _found else "missing"
    print(f"ldm is {_other}, not the one in {_root}; remove it, or start in that folder", file=sys.stderr)
    sys.exit(2)
