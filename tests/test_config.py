"""The registries of choices: names, options from signatures, and what is refused."""

from inspect import getdoc
from typing import Any, get_origin

import pytest
import torch
from conftest import ROOT

from ldm.config import Fraction, Options, Positive, Registry, Section, choice
from ldm.data.toys import toys
from ldm.diffusion import penalties, predictions, schedules, timestep_samplings, weightings
from ldm.errors import InputError
from ldm.networks import autoencoders, classifiers, networks
from ldm.sampling import samplers, spacings
from stages import train_diffusion
from stages.runner import read_section

CHOICES = {
    schedules: "cosine karras linear quadratic rectified_flow sigmoid sub_vp ve vp",
    predictions: "edm eps flow score v x0",
    weightings: "edm min_snr none snr",
    penalties: "huber l1 l2",
    timestep_samplings: "log_normal logit_normal uniform",
    spacings: "karras log_snr trailing uniform",
    samplers: "ddim ddpm dpmpp_2m dpmpp_3m euler euler_maruyama heun predictor_corrector",
    networks: "conv_unet mlp unet",
    autoencoders: "conv_vae",
    classifiers: "conv residual",
    toys: "four_gaussians gaussian_1d moons parabola",
}
EVERY = [pytest.param(table, name, id=f"{table.name}.{name}") for table in CHOICES for name in sorted(table.functions)]
REGISTRIES = [pytest.param(table, id=table.name) for table in CHOICES]


@pytest.mark.parametrize("registry", REGISTRIES)
def test_the_names_of_the_choices(registry):
    """A name that is gone, or another, makes parameter files and artifacts of before useless."""
    assert sorted(registry.functions) == CHOICES[registry].split()


@pytest.mark.parametrize("name", ["nosuch", "../errors", ""])
@pytest.mark.parametrize("registry", REGISTRIES)
def test_an_unknown_name_is_refused_with_the_known_ones(registry, name):
    for ask in (registry.options, registry.build, lambda name: registry.parse(name, {})):
        with pytest.raises(InputError) as caught:
            ask(name)
        assert len(str(caught.value).splitlines()) == 1
        assert f"unknown name {name!r} among the {registry.name}" in str(caught.value)
        assert f"known are {', '.join(CHOICES[registry].split())}" in str(caught.value)


@pytest.mark.parametrize(("registry", "name"), EVERY)
def test_an_unknown_option_is_refused(registry, name):
    with pytest.raises(InputError) as caught:
        registry.build(name, {"nosuch": 1})
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{registry.name}.{name}.nosuch: unknown parameter")
    for option in registry.options(name).model_fields:
        assert option in str(caught.value)


@pytest.mark.parametrize(("registry", "name"), EVERY)
def test_every_option_has_a_type_and_a_meaning(registry, name):
    text = getdoc(registry.functions[name]) or ""
    assert text
    assert text.partition(":")[0] not in registry.options(name).model_fields, "its options alone do not say what it is"
    for option, field in registry.options(name).model_fields.items():
        assert field.description, option
        assert isinstance(field.annotation, type) or get_origin(field.annotation), option
        registry.parse(name, {option: field.default})  # a default is a valid value itself
        with pytest.raises(InputError) as caught:
            registry.parse(name, {option: {"of": "another type"}})
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith(f"{registry.name}.{name}.{option}: ")


def test_a_name_is_given_once():
    registry: Registry[Any] = Registry("verbs")

    def twice() -> None: ...

    registry.register(twice)
    with pytest.raises(ValueError, match="'twice' is there already among the verbs"):
        registry.register(twice)


def test_options_of_a_choice_that_was_not_made_must_fit_together_too():
    class Chosen(Section):
        schedule: str = choice(schedules)
        schedules: Options

    with pytest.raises(InputError, match="sigma_min 5 must be below sigma_max 1"):
        Chosen.parse({"schedule": "cosine", "schedules": {"karras": {"sigma_min": 5.0, "sigma_max": 1.0}}}, "here")


@pytest.mark.parametrize(("registry", "name"), EVERY)
def test_defaults_build_every_choice(registry, name):
    built = registry.build(name)
    assert registry.parse(name, {}).model_dump() == {
        option: field.default for option, field in registry.options(name).model_fields.items()
    }
    if registry in (networks, autoencoders, classifiers):
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in built((1, 32, 32)).parameters()) > 100
    elif registry in (schedules, toys):
        assert not callable(built)
    else:
        assert callable(built)


@pytest.mark.parametrize(
    ("registry", "name", "options", "words"),
    [
        (schedules, "linear", {"length": 1.5}, "schedules.linear.length: 1.5 will not do"),
        (schedules, "linear", {"beta_end": 1.0}, "schedules.linear.beta_end: 1.0 will not do"),
        (schedules, "linear", {"scaled": "yes"}, "schedules.linear.scaled: 'yes' will not do"),
        (schedules, "vp", {"beta_min": float("nan")}, "schedules.vp.beta_min: nan will not do"),
        (schedules, "vp", {"beta_max": 1e200}, "schedules.vp.beta_max: 1e+200 will not do"),
        (predictions, "edm", {"sigma_data": 1e-200}, "predictions.edm.sigma_data: 1e-200 will not do"),
        (weightings, "edm", {"sigma_data": 1e-200}, "weightings.edm.sigma_data: 1e-200 will not do"),
        (autoencoders, "conv_vae", {"patch": 1025}, "autoencoders.conv_vae.patch: 1025 will not do"),
        (networks, "unet", {"multipliers": "1,2"}, "'1,2' will not do; it should be a list, as [1, 2]"),
        (samplers, "ddim", 5, "samplers.ddim: 5 will not do; it should be a mapping, as {name: value}"),
        (samplers, "ddpm", {"variance": "gamma"}, "samplers.ddpm.variance: 'gamma' will not do"),
        (networks, "unet", {"multipliers": []}, "networks.unet.multipliers: [] will not do"),
        (networks, "unet", {"width": 48, "groups": 7}, "width 48 times the multiplier 1 gives 48 channels"),
        (spacings, "karras", {"rho": 0.0, "sigma_min": -1.0}, "(and 1 more)"),
        (penalties, "huber", [], "penalties.huber"),
    ],
)
def test_bad_options_are_refused_in_one_line(registry, name, options, words):
    with pytest.raises(InputError) as caught:
        registry.build(name, options)
    assert len(str(caught.value).splitlines()) == 1
    assert words in str(caught.value)


def test_a_registered_function_is_a_choice_with_typed_options():
    registry: Registry = Registry("powers")

    @registry.register
    def power(x: float, *, exponent: Positive = 2.0, share: Fraction = 0.5) -> float:
        """A power.

        exponent: the exponent, which may go on
          in a second line
        share: what is taken of it
        """
        return share * x**exponent

    assert power(3.0) == 4.5  # the function is left as it was
    assert registry.build("power")(3.0) == 4.5
    assert registry.build("power", {"share": 0.25, "exponent": 3.0})(2.0) == 2.0
    fields = registry.options("power").model_fields
    assert {name: field.description for name, field in fields.items()} == {
        "exponent": "the exponent, which may go on in a second line",
        "share": "what is taken of it",
    }
    assert {name: field.default for name, field in fields.items()} == {"exponent": 2.0, "share": 0.5}
    for options, words in (
        ({"share": 1.0}, "powers.power.share: 1.0 will not do; it should be less than 1"),
        ({"exponent": "2"}, "powers.power.exponent: '2' will not do"),
        ({"x": 2.0}, "powers.power.x: unknown parameter; known here are exponent, share"),
    ):
        with pytest.raises(InputError) as caught:
            registry.build("power", options)
        assert words in str(caught.value)


def test_a_function_of_options_alone_makes_the_thing():
    registry: Registry = Registry("things")

    @registry.register
    def pair(*, first: int = 1, second: int = 2) -> tuple[int, int]:
        """A pair."""
        return first, second

    assert registry.build("pair", {"second": 5}) == (1, 5)
    assert registry.chosen({"thing": "pair", "things": {"pair": {"first": 0}}}, "thing") == (0, 2)


def test_a_new_choice_can_be_chosen_in_a_section_at_once(monkeypatch):
    """It is in the section's table of options too, and is recorded with its defaults."""
    monkeypatch.setattr(weightings, "functions", dict(weightings.functions))

    @weightings.register
    def root_snr(snr, error_scale, *, exponent: Positive = 0.5):
        """A power of the SNR.

        exponent: the exponent
        """
        return snr**exponent

    section = read_section(ROOT / "params.yaml", "train_diffusion") | {"weighting": "root_snr"}
    config = train_diffusion.Config.parse(section, "train_diffusion")
    assert config.build("weighting")(torch.tensor(9.0), torch.tensor(1.0)) == 3
    assert config.resolved()["weightings"] == {"root_snr": {"exponent": 0.5}}
    changed = section | {"weightings": {"root_snr": {"exponent": 2.0}}}
    config = train_diffusion.Config.parse(changed, "train_diffusion")
    assert config.build("weighting")(torch.tensor(9.0), torch.tensor(1.0)) == 81
    with pytest.raises(InputError, match=r"weightings\.root_snr\.exponent: 0\.0 will not do"):
        train_diffusion.Config.parse(section | {"weightings": {"root_snr": {"exponent": 0.0}}}, "train_diffusion")
