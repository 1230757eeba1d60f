"""Context: what the checks of one verdict work with. Samples are drawn when a check asks for the first time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from robustlit.attacks import Attack
from robustlit.attacks.losses import Criterion
from robustlit.classifier import undefended
from robustlit.results.evaluation import Evaluation
from robustlit.results.verdict import INCONCLUSIVE, PASS
from robustlit.verdict.landscape import Landscape, measure_landscape
from robustlit.verdict.probe import Probe, nearest_of
from robustlit.verdict.spec import FEW, FEWEST, HARD, SHORT, WIDE

TOO_SMALL = "what a quick verdict may cost pays for too few examples; evaluate more images, or take the full profile"
_NONE_ROBUST = "no example is robust at this budget, so its accuracy cannot be overstated"
_NONE_RIGHT = "no example is classified correctly"
MOST_COMPARED = 2000  # images whose distances to each other are measured
_POOL = 2  # times the examples to attack: so many at least are taken as near the boundary by the table


@dataclass
class Context:
    """What the checks of one verdict work with."""

    evaluation: Evaluation  # that is judged
    images: Tensor  # (N, C, H, W), all of the evaluation, misclassified ones too
    labels: Tensor  # (N,)
    right: Probe  # the correctly classified examples
    sizes: Mapping[str, int]  # number of examples in each sample
    allowed: int | None  # passes that all checks together may cost; None in the full profile
    substitute: nn.Module | None  # a network distilled from the model, to craft on
    named: Mapping[str, Attack] = field(default_factory=dict)  # the attacks of the evaluation, as far as known
    attack_name: str | None = None  # of the probes' attack among these

    @property
    def full(self) -> bool:
        """Whether this is the full profile."""
        return self.allowed is None

    @property
    def model(self) -> nn.Module:
        """The model, as evaluated."""
        return self.right.model

    @property
    def other_network(self) -> nn.Module:
        """The network that black-box attacks craft on; the model itself where there is no other."""
        return undefended(self.model) if self.substitute is None else self.substitute

    @cached_property
    def wide(self) -> Probe:
        """Many examples, drawn by the seed, for checks of a few passes each."""
        return self.right.drawn(self.sizes[WIDE])

    @cached_property
    def few(self) -> Probe:
        """The first of the wide sample, for checks that attack."""
        return self.wide.first(self.sizes[FEW])

    @cached_property
    def short(self) -> Probe:
        """Robust examples, for checks that attack them with a few steps."""
        return self.right.part(self.right.robust).drawn(self.sizes[SHORT])

    @cached_property
    def landscape(self) -> Landscape:
        """The loss and its gradient at points of the balls around the wide sample."""
        return measure_landscape(self.wide)

    @cached_property
    def hard(self) -> Probe:
        """The examples nearest to the decision boundary, where an attack that is too weak shows first."""
        size = self.sizes[HARD]
        if self.blind or size < FEWEST:  # a distance to the boundary takes gradients
            return self.wide.first(size)
        right, count = self.right, self.sizes[WIDE]
        chosen, represents = nearest_of(self.evaluation, right.norm, right.eps, count, _POOL * size, right.seed)
        near = torch.isin(right.index, right.index.new_tensor(chosen))
        return replace(right.part(near), represents=represents).hardest(size)

    @cached_property
    def zero_gradient(self) -> Tensor | str:
        """Whether the gradient of the loss is zero at each image of the wide sample (m,), or why there is none."""
        wide = self.wide
        try:
            gradient = wide.with_victim(lambda victim: victim.gradient(wide.x, Criterion(wide.y).log_odds)[2])
        except (ValueError, RuntimeError) as error:
            return str(error)
        return torch.eq(gradient.flatten(1).abs().amax(1), 0)

    @property
    def blind(self) -> bool:
        """Whether the model gives no gradient, so that no attack that differentiates can run."""
        return isinstance(self.zero_gradient, str)

    @cached_property
    def half_way(self) -> float:
        """Half the median L2 distance of an image to the nearest of another class; inf where there is one class."""
        return other_class_distance(self.images[:MOST_COMPARED], self.labels[:MOST_COMPARED]) / 2

    def nothing_to_probe(self, fewest: int = FEWEST) -> tuple[str, str] | None:
        """Return status and finding of all checks where fewer than `fewest` examples are left to look at, else None."""
        if not len(self.right):
            return INCONCLUSIVE, _NONE_RIGHT
        if not bool(self.right.robust.any()):
            return PASS, _NONE_ROBUST
        if not self.full and len(self.wide) < fewest:
            return INCONCLUSIVE, TOO_SMALL
        return None


def other_class_distance(x: Tensor, y: Tensor) -> float:
    """Return the median over images (N, ...) of the L2 distance to the nearest image of another class."""
    flat = x.flatten(1).float()
    nearest = []
    for part, label in zip(flat.split(200), y.split(200), strict=True):
        far = torch.cdist(part, flat)  # (200, N)
        nearest.append(far.masked_fill(label.unsqueeze(1) == y, float("inf")).amin(1))
    return float(torch.cat(nearest).median())
