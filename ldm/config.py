"""Frozen configuration classes: types, ranges and meaning; the values live in params.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ldm import choices
from ldm.errors import InputError


class Section(BaseModel):
    """A mapping of params.yaml: every key without a default required, none unknown, no type coerced, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Any, where: str):
        """Validate a plain mapping.

        Raises: InputError, one line that names the first offending key (as `where.key`),
        its value, and what would be right.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(_first_problem(cls, error, where)) from None

    def resolved(self) -> dict[str, Any]:
        """The configuration as plain data, without what has its default, nor the options of choices not made."""
        plain = self.model_dump(mode="json", exclude_defaults=True)
        for word, kind in choice_fields(type(self)).items():
            plain[kind] = {plain[word]: plain[kind][plain[word]]}
        return plain


def choice(kind: str, description: str) -> Any:
    """A field that names one module of the package `ldm.<kind>`.

    The section holds its options in a second field, named `kind`: a mapping from each
    name to the options of that choice.
    """
    return Field(description=description, json_schema_extra={"kind": kind})


def choice_fields(section: type[Section]) -> dict[str, str]:
    """Field name → kind, for the fields of a section declared with `choice`."""
    extras = {name: field.json_schema_extra for name, field in section.model_fields.items()}
    return {name: str(e["kind"]) for name, e in extras.items() if isinstance(e, dict) and "kind" in e}


OptionTable = dict[str, dict[str, Any]]


class ChoiceSection(Section):
    """A section with choices: each is known, and its options are valid."""

    @model_validator(mode="after")
    def _chosen_options_are_valid(self) -> ChoiceSection:
        for word, kind in choice_fields(type(self)).items():
            name, table = getattr(self, word), getattr(self, kind)
            choices.module(kind, name)
            if name not in table:
                raise InputError(f"{kind}.{name}: the options of {word} {name!r} are missing; write '{name}: {{}}' for none")
            parse_options(kind, name, table[name])
        return self

    def chosen(self, word: str) -> tuple[str, str, dict[str, Any]]:
        """(kind, name, options) of the choice `word`, the arguments of `choices.build`."""
        kind = choice_fields(type(self))[word]
        name = getattr(self, word)
        return kind, name, getattr(self, kind)[name]


def parse_options(kind: str, name: str, values: Any) -> Section:
    """The validated options of one choice. Raises: InputError."""
    return choices.module(kind, name).Options.parse(values, f"{kind}.{name}")


def _first_problem(cls: type[Section], error: ValidationError, where: str) -> str:
    """One line from pydantic's report."""
    problem = error.errors()[0]
    place = ".".join([where, *map(str, problem["loc"])])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match problem["type"]:
        case "extra_forbidden":
            section: Any = cls
            for key in problem["loc"][:-1]:
                section = section.model_fields[key].annotation
            known = ", ".join(section.model_fields)
            return f"{place}: unknown parameter; known here are {known}{more}"
        case "missing":
            return f"{place}: the parameter is missing{more}"
        case "value_error":
            return f"{place}: {problem['ctx']['error']}{more}"
    wanted = problem["msg"].replace("Input should be", "it should be")
    return f"{place}: {problem['input']!r} will not do; {wanted}{more}"
