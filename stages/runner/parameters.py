"""Parameter files: YAML in, validated sections out, and the rows of `--help`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from ruamel.yaml import YAML, YAMLError, constructor, nodes

from ldm import InputError, Section, choices_of
from ldm.config import MOST, shown

PARAMS = Path("params.yaml")
DEEPEST = 9  # dots in the name of a parameter
AS_WRITTEN = {"root", "label", "background"}  # names, of which YAML would read some as numbers or dates
# attributes of limits, as annotated_types names them → how --help shows them
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
SIGNS |= {"min_length": "length ≥", "max_length": "length ≤"}
LARGE = {MOST: "10**9", 2**63: "2**63"}


class NamesAsWritten(constructor.SafeConstructor):
    """Builds plain data, as its base does, but takes names as they are written: `root: 007` is the folder 007."""

    def construct_mapping(self, node: nodes.MappingNode, deep: bool = False) -> Any:
        for key, value in node.value:
            texts = isinstance(key, nodes.ScalarNode) and isinstance(value, nodes.ScalarNode)
            if texts and key.value in AS_WRITTEN and not str(value.tag).endswith(":null"):
                value.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping (version 1.2, as DVC reads it). Raises: InputError."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = NamesAsWritten
    try:
        values = yaml.load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing here; run from the folder that holds it") from None
    except (YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of sections")
    return values


def read_section(path: Path, name: str) -> dict[str, Any]:
    """One section of a parameter file. Raises: InputError."""
    values = read_yaml(path)
    if not isinstance(values.get(name), dict):
        problem = f"is no mapping; to set nothing, write {name}: {{}}" if name in values else "is missing"
        raise InputError(f"{path}: the section {name!r} {problem}")
    return values[name]


def with_settings(section: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The section, changed in place by `key=value` settings, where a dotted key names a place in an inner mapping.

    Inner mappings are replaced by changed copies. Unknown keys are set too: `Section.parse` refuses them later. Raises:
    InputError for text that is no setting.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key.count(".") > DEEPEST:
            raise InputError(f"--set {shown(setting)} is not of the form KEY=VALUE, with at most {DEEPEST} dots in KEY")
        place, *inner, last = section, *key.split(".")
        for i, name in enumerate(inner):
            place[name] = copy(place.get(name, {}))  # which an anchor may share with another place
            place = place[name]
            if not isinstance(place, dict):
                raise InputError(f"--set {key}: {'.'.join(inner[: i + 1])} has no parameters of its own")
        place[last] = (None if text == "null" else text) if last in AS_WRITTEN else _yaml_value(key, text)
    return section


def _yaml_value(key: str, text: str) -> Any:
    """A setting's value; of a date, which no parameter is, the text. Raises: InputError."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):  # a date that does not exist is a ValueError
        raise InputError(f"--set {key}: {shown(text)} is not a YAML value") from None
    return text if isinstance(value, date) else value


class Parameter(NamedTuple):
    """A parameter of a stage: its dotted name, its value, the default, the type with the range, and the meaning."""

    name: str
    value: Any
    default: Any
    form: str
    meaning: str


def parameters_of(config: type[Section], values: Any, prefix: str = "") -> Iterator[Parameter]:
    """The parameters of a section, also the options of choices that were not made."""
    values = values if isinstance(values, dict) else {}
    registries = choices_of(config)
    tables = {registry.name: registry for registry in registries.values()}
    for key, field in config.model_fields.items():
        annotation: Any = field.annotation
        if key in tables:
            table = section if isinstance(section := values.get(key), dict) else {}
            for name in sorted(tables[key].functions):
                yield from parameters_of(tables[key].options(name), table.get(name), f"{prefix}{key}.{name}.")
        elif isinstance(annotation, type) and issubclass(annotation, Section):
            yield from parameters_of(annotation, values.get(key), f"{prefix}{key}.")
        else:
            default = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
            form = ", ".join([type_name(annotation), *limits(field.metadata)])
            names = f" ({', '.join(sorted(registries[key].functions))})" if key in registries else ""
            yield Parameter(f"{prefix}{key}", values.get(key, default), default, form, f"{field.description}{names}")


def as_written(value: Any) -> str:
    """A parameter's value as params.yaml has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def limits(metadata: Iterable[Any]) -> list[str]:
    """The limits in the metadata of a type."""
    each = [one for meta in metadata for one in getattr(meta, "metadata", [meta])]  # a Field has several
    bounds = [(sign, getattr(one, name, None)) for one in each for name, sign in SIGNS.items()]
    return [f"{sign} {LARGE.get(bound, bound)}" for sign, bound in bounds if bound is not None]


def type_name(annotation: Any) -> str:
    """A type as `--help` shows it: int; crop or pad; int ≥ 1 or null; list of 2 int ≥ 1."""
    inner, origin = get_args(annotation), get_origin(annotation)
    if origin in (Literal, Union, UnionType):  # the alternatives of a Literal are names themselves
        return " or ".join(dict.fromkeys(map(type_name, inner)))
    if origin is Annotated:
        return " ".join([type_name(inner[0]), " and ".join(limits(inner[1:]))]).strip()
    if origin in (tuple, list):
        length = "" if origin is list or inner[-1] is ... else f"{len(inner)} "
        return f"list of {length}{type_name(inner[0])}"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
