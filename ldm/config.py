"""Configuration: sections of params.yaml as frozen classes, and the registries of choices.

A choice is a function, or a class, whose keyword-only arguments are its options: annotated with type and range, with
the value of its paper as default, and with a line `name: meaning` in the docstring, as the fields of a section have.
params.yaml holds the options that an experiment changed; `--help` shows all of them.
"""

import re
import reprlib
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from inspect import cleandoc, signature
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

from ldm.errors import InputError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MOST = 10**9  # the largest count that may be asked for
Count = Annotated[int, Field(ge=1, le=MOST)]
Natural = Annotated[int, Field(ge=0, le=MOST)]
Several = Annotated[int, Field(ge=2, le=MOST)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]  # 0 and 1 included
Rate = Annotated[float, Field(ge=0, lt=1)]  # 1 excluded
Fraction = Annotated[float, Field(gt=0, lt=1)]  # 0 and 1 excluded
Sigma = Annotated[float, Field(ge=1e-6, le=1e6)]  # a noise level σ̄, of which squares and inverses are finite
Rho = Annotated[float, Field(ge=0.1, le=1000)]  # the curvature of Karras' levels, of whose roots the same is true
# text, of which YAML reads some as a whole number or a date
Name = Annotated[str, BeforeValidator(lambda x: str(x) if isinstance(x, int | date) and not isinstance(x, bool) else x)]
Options = Annotated[dict[str, dict[str, Any]], Field(default_factory=dict)]  # name of a choice → its options


class Section(BaseModel):
    """A mapping of params.yaml; it refuses unknown keys, other types, NaN, and the lack of a key without default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Take the meaning of each field from the class's docstring, where it may go on in indented lines."""
        meanings = dict(re.findall(r"^(\w+): (.+(?:\n +\S.*)*)", cleandoc(cls.__doc__ or ""), re.MULTILINE))
        for name, field in cls.model_fields.items():
            field.description = field.description or " ".join(meanings.get(name, "").split()) or None

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Validate a plain mapping.

        Raises: InputError, one line that names the first offending key (as `where.key`), its value, and what would
        be right.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(_first_problem(cls, error, where)) from None

    @model_validator(mode="after")
    def _choices_are_valid(self) -> Self:
        """Every choice that the section makes can be built, and every table of options is one of known names."""
        for word, registry in choices_of(type(self)).items():
            for name, options in getattr(self, registry.name).items():
                registry.build(name, options)
            self.build(word)
        return self

    def build(self, word: str) -> Any:
        """What the field `word` chose, with its options. Raises: InputError for an unknown name or bad options."""
        registry = choices_of(type(self))[word]
        name = getattr(self, word)
        return registry.build(name, getattr(self, registry.name).get(name, {}))

    def resolved(self) -> dict[str, Any]:
        """Plain data for an artifact: every value, defaults included, and the options of chosen names only."""
        plain = self.model_dump(mode="json")
        for word, registry in choices_of(type(self)).items():
            name = plain[word]
            options = registry.parse(name, plain[registry.name].get(name, {}))
            plain[registry.name] = {name: options.model_dump(mode="json")}
        return plain


class Registry(Generic[T]):
    """The choices of one kind: name → function or class, whose keyword-only arguments are the options of that choice.

    Where there are no other arguments, the thing chosen is what a call with the options returns. Where there are, it is
    the function itself with its options bound.
    """

    def __init__(self, name: str) -> None:
        """name: the plural by which messages, params.yaml and artifacts call the table of options."""
        self.name = name
        self.functions: dict[str, Callable[..., Any]] = {}

    def register(self, function: F) -> F:
        """Add a function by its name, or a class by its name in snake_case; a decorator, which changes neither."""
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", function.__name__).lower()
        if name in self.functions:
            raise ValueError(f"{name!r} is there already among the {self.name}")
        self.functions[name] = function
        return function

    def options(self, name: str) -> type[Section]:
        """The class of a choice's options. Raises: InputError for an unknown name, with the known ones."""
        if name not in self.functions:
            known = ", ".join(sorted(self.functions))
            raise InputError(f"unknown name {name!r} among the {self.name}: known are {known}")
        function = self.functions[name]
        arguments = signature(function).parameters.values()
        fields: dict[str, Any] = {a.name: (a.annotation, a.default) for a in arguments if a.kind is a.KEYWORD_ONLY}
        return create_model(f"{self.name}.{name}", __base__=Section, __doc__=function.__doc__, **fields)

    def parse(self, name: str, options: Any) -> Section:
        """The validated options of one choice. Raises: InputError for an unknown name or bad options."""
        return self.options(name).parse(options, f"{self.name}.{name}")

    def build(self, name: str, options: Mapping[str, Any] | None = None) -> T:
        """One choice from plain options: `schedules.build("cosine", {"length": 500})`.

        Raises: InputError for an unknown name or bad options.
        """
        section = self.parse(name, {} if options is None else options)
        bound: Any = partial(self.functions[name], **dict(section))
        if any(a.kind is not a.KEYWORD_ONLY for a in signature(bound).parameters.values()):
            return bound
        try:
            return bound()
        except InputError as error:
            raise InputError(f"{self.name}.{name}: {error}") from None

    def chosen(self, config: Mapping[str, Any], word: str) -> T:
        """What an artifact's configuration chose in its field `word`, with the options recorded there.

        Raises: InputError for an unknown name or bad options; LookupError where the configuration lacks them.
        """
        return self.build(config[word], config[self.name][config[word]])


def choice(registry: Registry[Any]) -> Any:
    """A field that names one choice of a registry.

    The section holds options in a second field, named as the registry: a mapping from names to what differs from
    their defaults.
    """
    return Field(json_schema_extra={"registry": registry})  # type: ignore[dict-item]


def choices_of(section: type[Section]) -> dict[str, Registry[Any]]:
    """Field name → registry, for the fields of a section declared with `choice`."""
    extras: dict[str, Any] = {name: field.json_schema_extra for name, field in section.model_fields.items()}
    return {name: extra["registry"] for name, extra in extras.items() if isinstance(extra, dict)}


def shown(value: Any) -> str:
    """A value in a message, where only the beginning of a long one is wanted."""
    form = reprlib.Repr()
    form.maxstring = form.maxother = 80
    if isinstance(value, int) and abs(value) >= 10**80:  # Python itself writes none of thousands of digits
        return f"this {type(value).__name__}"
    return form.repr(value)


def _first_problem(cls: type[Section], error: ValidationError, where: str) -> str:
    """The first problem of pydantic's report, in one line, and the number of further ones."""
    problem = error.errors()[0]
    place = ".".join([where, *map(str, problem["loc"])])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match problem["type"]:
        case "extra_forbidden":
            section: Any = cls
            for key in problem["loc"][:-1]:
                section = section.model_fields[key].annotation
            return f"{place}: unknown parameter; known here are {', '.join(section.model_fields)}{more}"
        case "missing":
            return f"{place}: the parameter is missing{more}"
        case "value_error":
            return f"{place}: {problem['ctx']['error']}{more}"
    expected = problem["msg"].replace("Input should be", "it should be").replace("a valid tuple", "a list, as [1, 2]")
    if problem["type"] in ("dict_type", "model_type"):
        expected = "it should be a mapping, as {name: value}"
    hints = {float: ": write it in quotes", type(None): ", and one that begins with # needs quotes"}
    quotes = hints.get(type(problem["input"]), "") if problem["type"] == "string_type" else ""
    return f"{place}: {shown(problem['input'])} will not do; {expected}{quotes}{more}"
