"""Transfer: craft adversarial examples on one model and judge them on another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.attack import Attack, BudgetAttack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim


@dataclass(frozen=True)
class Transfer(Attack):
    """Run an attack on a source model; the model under attack only judges, and needs no gradients.

    Papernot, McDaniel, Goodfellow: Transferability in machine learning, 2016, arXiv:1605.07277. A source can be
    distilled from the model's predictions: `robustlit.training.distil`.

    A point just past the source's boundary rarely misleads another model. So a budget attack takes all its steps (and
    restarts) and returns the point of highest loss. A minimal attack stops at that boundary; `stretch` lengthens its
    perturbation, and an example that the source already misclassifies is returned unchanged. Both models' passes are
    counted.

    `Transfer(attack, source)` of a budget attack is a `BudgetAttack` with that attack's eps.

    Args:
        attack: The attack to run on the source, e.g. `PGD(eps=0.3)`.
        source: From images (B, ...) in [0, 1] to logits (B, K), on their device.
        stretch: Factor on a minimal attack's perturbation, which is then clipped to the box. Default 1.

    Raises:
        ValueError: No attack, no module, a stretch below 1 or for a budget attack.
    """

    name: ClassVar[str] = "transfer"
    needs_gradients: ClassVar[bool] = False
    attack: Attack = field()
    source: nn.Module = field()
    stretch: float = 1.0
    norm: str = field(init=False, default="linf")

    @property
    def expected_passes(self) -> float:
        return self.attack.expected_passes

    def __new__(cls, *args: Any, **kwargs: Any) -> Transfer:
        # Sweeps look at an attack's class to see whether it has a budget, so the class depends on the wrapped attack.
        inner = args[0] if args else kwargs.get("attack")
        return super().__new__(_TransferWithinBudget if isinstance(inner, BudgetAttack) else cls)

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise ValueError(f"attack must be an attack, got {self.attack!r}; e.g. Transfer(PGD(eps=0.3), source)")
        if not isinstance(self.source, nn.Module):
            raise ValueError(f"source must be a model (nn.Module), got {self.source!r}")
        if isinstance(self.stretch, bool) or not 1 <= self.stretch < float("inf"):
            raise ValueError(f"stretch must be finite and at least 1, got {self.stretch!r}; 1 changes nothing")
        # An instance takes its name, norm and criteria from the wrapped attack.
        for name in ("norm", "norms", "targeted", "untargeted"):
            object.__setattr__(self, name, getattr(self.attack, name))
        object.__setattr__(self, "name", f"transfer-{self.attack.name}")
        super().__post_init__()

    def __repr__(self) -> str:
        stretch = "" if self.stretch == 1 else f", stretch={self.stretch!r}"
        return f"Transfer({self.attack!r}, <{type(self.source).__name__}>{stretch})"

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        found = x.clone()
        # The outer victim keeps the generators: restored here, every batch would get the same noise.
        with Victim(self.source, x, keep_generators=False) as source:
            # The source has its own criterion: unlike the victim it may be deterministic and unable to refuse.
            criterion = source.criterion(criterion.label, criterion.target, safely=True)
            clean, logits = source.judge(x)
            if self.attack.needs_gradients:
                criterion = criterion.scaled_to(source.attacked_logits(x, logits))
            if eps is None:
                here = torch.nonzero(~criterion.reached(clean)).squeeze(1)
                criterion = criterion.with_rounding_margin(clean)
            else:
                here = torch.arange(len(x), device=x.device)
                criterion = _NeverReached(**vars(criterion))
            if len(here):
                radii = None if eps is None else eps[here]
                part, own = criterion.select(here), draws.select(here)
                found[here] = self.attack._search(source, x[here], part, here, own, radii).detach()
            victim.passes.add(source.passes, rows)
        return found if self.stretch == 1 else (x + self.stretch * (found - x)).clamp_(0, 1)


@dataclass(frozen=True, repr=False)
class _TransferWithinBudget(Transfer, BudgetAttack):
    eps: float = field(init=False, default=0.3)

    def __post_init__(self) -> None:
        assert isinstance(self.attack, BudgetAttack)
        if self.stretch != 1:
            kind = type(self.attack).__name__
            raise ValueError(f"stretch is for minimal attacks, got {self.stretch!r} for {kind}, which keeps within eps")
        object.__setattr__(self, "eps", self.attack.eps)
        super().__post_init__()


class _NeverReached(Criterion):
    """A criterion that is never reached: an attack then takes all its steps."""

    def reached(self, logits: Tensor) -> Tensor:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
