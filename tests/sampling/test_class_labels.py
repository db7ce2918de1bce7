"""Classes: the network is given them in training, samples draw theirs, and one can be asked for."""

import pytest
import torch
from torch import nn

from ldm import artifacts
from ldm.diffusion import Denoiser, DiffusionLoss, penalties, predictions, schedules, weightings
from ldm.errors import InputError
from ldm.sampling import Guided, Streams
from ldm.sampling.classes import LOOKS, class_seen, classes_of, mistaken, quota

UNET = {"width": 16, "multipliers": [1], "blocks": 1, "embedding": 32, "groups": 8, "heads": 2}
CONFIG = {"network": "unet", "networks": {"unet": UNET}}
CONFIG |= {"schedule": "rectified_flow", "schedules": {"rectified_flow": {}}}
CONFIG |= {"prediction": "flow", "predictions": {"flow": {}}}


def denoiser(*class_sizes: int) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser.from_config(CONFIG, (1, 4, 4), class_sizes)


def guided(*class_sizes: int) -> Guided:
    return Guided(denoiser(*class_sizes), denoiser(*class_sizes), weight=2.0, sigma_min=0.0, sigma_max=10.0)


def test_a_denoiser_learns_what_a_class_looks_like():
    """White images and black ones, almost pure noise: only the class tells which."""
    learner = denoiser(1, 1)
    loss = DiffusionLoss(penalties.build("l2"), weightings.build("none"))
    adam = torch.optim.Adam(learner.network.parameters(), 0.01)
    shades = torch.tensor([1.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        labels = torch.randint(2, (32,), generator=generator)
        x0 = shades[labels, None, None, None].expand(-1, 1, 4, 4)
        eps, t = torch.randn(x0.shape, generator=generator), torch.rand(32, generator=generator).clamp(min=0.5)
        adam.zero_grad()
        loss(learner, x0, eps, t, labels).mean().backward()
        adam.step()
    noise, level = torch.randn(1, 1, 4, 4, generator=generator), learner.schedule.at(torch.tensor([0.99]))
    with torch.no_grad():
        white, black = (learner.x0(noise, level, torch.tensor([label])).mean().item() for label in (0, 1))
    assert white > 0.8
    assert black < -0.8


def test_every_class_has_a_gradient_of_its_own():
    network = denoiser(1, 1, 1).network
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network(torch.randn(4, 1, 4, 4), torch.rand(4), torch.tensor([0, 2, 2, 0])).square().sum().backward()
    (table,) = (p for name, p in network.named_parameters() if "classes" in name)
    assert (table.grad.abs().sum(1) > 0).tolist() == [True, False, True]


def test_classes_add_one_table_of_weights():
    plain, classed = denoiser().network, denoiser(1, 1, 1).network
    assert classed.state_dict().keys() - plain.state_dict().keys() == {"embed.classes.weight"}
    assert not plain.state_dict().keys() - classed.state_dict().keys()


SIZES = [
    [100, 0, 300, 600],
    [7],
    [1, 1, 1],
    [720, 70, 2, 2, 2, 5, 5, 283, 3, 1],  # where the class furthest behind, in its turn, would be 1.15 behind
    [5444, 6179, 5470, 5638, 5307, 4987, 5417, 5715, 5389, 5454],  # MNIST's, as its 55,000 training images may be
    torch.randint(1, 1000, (100,), generator=torch.Generator().manual_seed(0)).tolist(),
]


@pytest.mark.parametrize("sizes", SIZES, ids=len)
def test_every_prefix_has_the_shares_of_the_training_images(sizes):
    """To within one sample; a whole period has the counts of the training images."""
    total, n = sum(sizes), min(sum(sizes), 3000)
    counts = torch.nn.functional.one_hot(torch.tensor(quota(tuple(sizes), n)), len(sizes)).cumsum(0)
    shares = torch.arange(1, n + 1)[:, None] * torch.tensor(sizes)
    assert ((counts * total - shares).abs() < total).all()
    assert not counts[-1][torch.tensor(sizes) == 0].any()
    if n == total:
        assert counts[-1].tolist() == sizes
        assert classes_of([0, total, 5 * total], sizes, None, "cpu").unique().numel() == 1


def test_the_class_of_a_sample_depends_on_its_index_alone():
    sizes = [100, 0, 300, 600]
    whole = classes_of(range(4000), sizes, None, "cpu")
    assert torch.equal(classes_of([17, 3], sizes, None, "cpu"), whole[[17, 3]])
    assert torch.equal(classes_of([10**12 + 17], sizes, None, "cpu"), whole[[17]])  # a multiple of the period
    assert classes_of(range(3), sizes, 2, "cpu").tolist() == [2] * 3
    assert classes_of(range(3), [], None, "cpu") is None


class OfGaussians:
    """The exact denoiser of classes N(mean, 0.5²) of one number each; what it is told of is counted."""

    means = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
    class_sizes = (3, 0, 1)
    schedule = schedules.build("rectified_flow")

    def __init__(self) -> None:
        self.told: list[tuple[float, int, int]] = []

    def __call__(self, x, sigma, labels):
        self.told.append((sigma.item(), labels[0].item(), len(x)))
        mean = self.means[labels][:, None]
        return mean + (x - mean) * 0.25 / (0.25 + sigma**2)


def test_the_class_seen_is_the_nearest_of_those_trained_on():
    """The number 0 is class 1's mean, of which there were no images; and a class between two is seen on its side."""
    denoiser, x = OfGaussians(), torch.tensor([[-2.0], [2.0], [-0.3], [0.3], [0.0]]).repeat(200, 1)
    seen = class_seen(denoiser, x, Streams(0, range(1000), (1,))).view(200, 5)
    assert (seen[:, :2] == torch.tensor([0, 2])).all()
    assert set(seen.unique().tolist()) == {0, 2}
    assert (seen[:, 2] == 0).float().mean() > 0.6  # noise decides the others
    assert (seen[:, 3] == 2).float().mean() > 0.6
    assert sorted({(label, size) for _, label, size in denoiser.told}) == [(0, 1000), (2, 1000)]
    assert sorted({sigma for sigma, _, _ in denoiser.told}) == pytest.approx([0.75, 1.5, 3.0])


def after(draws: int, indices: torch.Tensor) -> Streams:
    """The streams of these samples after so many draws."""
    streams = Streams(4, indices.tolist(), (1,))
    for _ in range(draws):
        streams()
    return streams


def test_a_sample_is_mistaken_where_no_look_sees_its_class():
    """Only those that failed the first look are looked at again, by further noise of their own streams."""
    denoiser = OfGaussians()
    x, labels = torch.tensor([[-2.0], [0.2], [2.0], [0.1]]).repeat(250, 1), torch.tensor([0, 0, 0, 2]).repeat(250)
    found, streams = mistaken(denoiser, x, labels, Streams(4, range(1000), (1,)))
    wrong = torch.arange(1000)
    for look in range(LOOKS):
        wrong = wrong[class_seen(denoiser, x[wrong], after(3 * look, wrong)) != labels[wrong]]
    assert torch.equal(found, wrong)
    assert torch.equal(streams(), after(3 * LOOKS, found)())
    kinds = (found % 4).bincount(minlength=4).tolist()
    assert kinds[0] == 0
    assert kinds[2] == 250  # all numbers 2 that should be of class 0
    assert 0 < kinds[3] < kinds[1] < 250  # 0.1 is nearer to the class that it should be of than 0.2 is to its own


def test_guidance_gives_both_networks_the_same_classes():
    seen = []

    def network(x, t, labels):
        seen.append(labels.tolist())
        return x

    schedule, prediction = schedules.build("rectified_flow"), predictions.build("flow")
    main, guide = (Denoiser(network, schedule, prediction, class_sizes=(5, 5, 5)) for _ in range(2))
    both = Guided(main, guide, weight=2.0, sigma_min=0.0, sigma_max=10.0)
    both(torch.randn(3, 1, 4, 4), torch.tensor(0.5), torch.tensor([2, 0, 1]))
    assert seen == [[2, 0, 1], [2, 0, 1]]


@pytest.mark.parametrize("label", [-1, 1, 3, 1.0, True, "1", "oak"])
def test_classes_that_were_not_trained_on_are_refused(label):
    with pytest.raises(InputError, match=f"label {label}: the denoiser was not trained on this class, but on 0, 2"):
        guided(5, 0, 5).class_of(label)


@pytest.mark.parametrize(("label", "index"), [(None, None), (0, 0), (2, 2), ("2", 2)])
def test_classes_that_were_trained_on_may_be_asked_for(label, index):
    assert guided(5, 0, 5).class_of(label) == index


@pytest.mark.parametrize(("label", "index"), [("oak", 0), ("2", 1), ("10", 3), ("3", 3), (0, 0), (1, 1), (3, 3)])
def test_a_class_is_asked_for_by_its_name_or_else_by_its_index(label, index):
    """The text 2 is the class of that name, whose index is 1; none has the name 3, which is thus an index."""
    named = guided(5, 5, 0, 5)
    named.class_names = ["oak", "2", "ash", "10"]
    assert named.class_of(label) == index
    with pytest.raises(InputError, match="label ash: the denoiser was not trained on this class, but on oak, 2, 10"):
        named.class_of("ash")
    with pytest.raises(InputError, match="label 2: the denoiser was not trained on this class"):
        named.class_of(2)


def test_letters_with_accents_may_be_spelt_in_two_ways():
    named = guided(5, 5)
    named.class_names = ["cafe\u0301", "th\u00e9"]  # two letters for é, as macOS writes names, and one
    assert [named.class_of(label) for label in ("caf\u00e9", "cafe\u0301", "the\u0301")] == [0, 0, 1]
    named.class_names = ["cafe\u0301", "caf\u00e9"]
    assert [named.class_of(name) for name in named.class_names] == [0, 1]


@pytest.mark.parametrize("names", ["ab", ["a"], ["a", "a"], [1, 2], {"a": 0, "b": 1}])
def test_forged_names_of_classes_are_refused(names, tmp_path):
    config = CONFIG | {"shape": [1, 4, 4], "class_sizes": [5, 5], "class_names": names}
    path = tmp_path / "denoiser.safetensors"
    artifacts.save(path, "denoiser", denoiser(5, 5).network.state_dict(), config)
    with pytest.raises(InputError, match=r"denoiser\.safetensors: .*class_names"):
        Denoiser.from_artifact(artifacts.load(path, "denoiser"))


def test_without_labels_there_is_no_class_to_ask_for():
    plain = guided()
    assert plain.class_of(None) is None
    with pytest.raises(InputError, match=r"label 0: the denoiser was trained without labels; .*class_labels"):
        plain.class_of(0)


@pytest.mark.parametrize("sizes", [["5", "5"], "55", {"0": 5}, [0, 0], [5, -1], [True, True], [None, 2], [2**70, 1], 7])
def test_forged_sizes_of_classes_are_refused(sizes, tmp_path):
    config = CONFIG | {"shape": [1, 4, 4], "class_sizes": sizes}
    path = tmp_path / "denoiser.safetensors"
    artifacts.save(path, "denoiser", denoiser(1, 1).network.state_dict(), config)
    with pytest.raises(InputError, match=r"denoiser\.safetensors: class_sizes .*numbers of training images"):
        Denoiser.from_artifact(artifacts.load(path, "denoiser"))


def test_sizes_of_classes_come_back_from_an_artifact(tmp_path):
    """With them the network has its table of classes."""
    path, made = tmp_path / "denoiser.safetensors", denoiser(5, 0, 5)
    artifacts.save(path, "denoiser", made.network.state_dict(), CONFIG | {"shape": [1, 4, 4], "class_sizes": [5, 0, 5]})
    loaded = Denoiser.from_artifact(artifacts.load(path, "denoiser"))
    assert loaded.class_sizes == [5, 0, 5]
    x, sigma, labels = torch.randn(3, 1, 4, 4), torch.tensor(0.5), torch.tensor([2, 0, 2])
    torch.testing.assert_close(loaded(x, sigma, labels), made(x, sigma, labels))


def test_an_optional_tensor_may_be_missing_but_not_wrong(tmp_path):
    path = tmp_path / "samples.safetensors"
    tensors = {"samples": torch.zeros(2, 1, 4, 4), "trajectory": torch.zeros(1, 3, 1, 4, 4)}
    for labels in ({}, {"labels": torch.zeros(2, dtype=torch.uint8)}):
        artifacts.save(path, "samples", tensors | labels, {})
        assert artifacts.load(path, "samples").tensors.keys() == (tensors | labels).keys()
    artifacts.save(path, "samples", tensors | {"labels": torch.zeros(2)}, {})
    with pytest.raises(InputError, match=r"tensor 'labels' is torch\.float32 \(2,\), but torch\.uint8"):
        artifacts.load(path, "samples")
    artifacts.save(path, "samples", tensors | {"classes": torch.zeros(2)}, {})
    with pytest.raises(InputError, match="tensor 'classes'"):
        artifacts.load(path, "samples")
