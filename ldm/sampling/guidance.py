"""Autoguidance: a denoiser led away from a worse version of itself, and what samples may be asked for."""

from __future__ import annotations

from numbers import Integral
from unicodedata import normalize

from ldm.artifacts import Artifact, merge_lineage
from ldm.diffusion import Denoiser
from ldm.errors import InputError
from ldm.lazy import Tensor


class Guided:
    """D = D_guide + w (D_main − D_guide), within an interval of σ̄ only; a weight w of 1 is no guidance.

    Karras et al. 2024, arXiv:2406.02507, Eq. 3; the interval is that of Kynkäänniemi et al. 2024, arXiv:2404.07724.
    """

    def __init__(self, main: Denoiser, guide: Denoiser, *, weight: float, sigma_min: float, sigma_max: float) -> None:
        self.main, self.guide, self.weight, self.interval = main, guide, weight, (sigma_min, sigma_max)
        self.schedule, self.shape, self.class_sizes = main.schedule, main.shape, main.class_sizes
        self.class_names = main.class_names or [str(index) for index in range(len(main.class_sizes))]

    @classmethod
    def from_artifacts(cls, denoiser: Artifact, guide: Artifact, *, device: str, **guidance: float) -> Guided:
        """Two trained denoisers on a device. Raises: InputError where weights do not fit, or for two kinds of data."""
        merge_lineage([denoiser, guide])
        main, worse = (Denoiser.from_artifact(artifact, device) for artifact in (denoiser, guide))
        return cls(main, worse, **guidance)

    def class_of(self, label: str | int | None) -> int | None:
        """The index of the class that a label names; None for None, which is any class.

        label: the index, or text, which is the name of a class or, where no class has that name, an index. Raises:
        InputError unless the networks were trained on this class.
        """
        if label is None:
            return None
        shown = label or repr(label)  # which may be empty text
        if not self.class_sizes:
            raise InputError(f"label {shown}: the denoiser was trained without labels; set null, or class_labels")
        known = {name: index for index, name in enumerate(self.class_names) if self.class_sizes[index]}
        # letters with accents have two spellings, of which a folder's name and a keyboard may choose different ones
        of_text = {str(index): index for index in known.values()}
        of_text |= {normalize("NFC", name): index for name, index in known.items()} | known
        for text in (label, normalize("NFC", label)) if isinstance(label, str) else ():
            if text in of_text:
                return of_text[text]
        if isinstance(label, Integral) and not isinstance(label, bool) and label in known.values():
            return int(label)
        raise InputError(f"label {shown}: the denoiser was not trained on this class, but on {', '.join(known)}")

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """As `Denoiser.__call__`."""
        x_t, level = self.main.at_sigma(x, sigma)
        denoised = self.main.x0(x_t, level, labels)
        if self.weight == 1 or not self.interval[0] <= sigma <= self.interval[1]:
            return denoised
        guide = self.guide.x0(x_t, level, labels)
        return guide + self.weight * (denoised - guide)
