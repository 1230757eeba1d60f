"""Transfer: crafted on one model, judged on another."""

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
    """Runs an attack on a source model; the victim itself only judges, and needs no gradients.

    Papernot, McDaniel, Goodfellow: Transferability in machine learning, 2016, arXiv:1605.07277. A source can be
    distilled from the victim's answers: `robustlit.training.distil`.

    A point that only just fools the source rarely fools another net. So a budget attack never counts as finished on
    the source: it spends all its steps (and restarts) and returns the point of highest loss. A minimal attack stops at
    the source's boundary by its nature; `stretch` lengthens its perturbation beyond. It leaves an example that the
    source misclassifies anyway as it is. Passes count on both models: those of the source, and one or two of the
    victim.

    `Transfer(attack, source)` of a budget attack is a `BudgetAttack`: it has that attack's eps and takes one per
    example.

    Args:
        attack: what to run on the source, e.g. `PGD(eps=0.3)`.
        source: from images (B, ...) in [0, 1] to logits (B, K), on their device.
        stretch: a minimal attack's perturbation is multiplied by it, then cut to the box; 1 leaves it.

    Raises:
        ValueError: no attack, no module, a stretch below 1 or for a budget attack.
    """

    name: ClassVar[str] = "transfer"
    needs_gradients: ClassVar[bool] = False
    attack: Attack = field()
    source: nn.Module = field()
    stretch: float = 1.0
    norm: str = field(init=False, default="linf")

    def __new__(cls, *args: Any, **kwargs: Any) -> Transfer:
        # Sweeps ask of an attack's class whether it has a budget, so the class follows from what is wrapped.
        inner = args[0] if args else kwargs.get("attack")
        return super().__new__(_TransferWithinBudget if isinstance(inner, BudgetAttack) else cls)

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise ValueError(f"attack must be an attack, got {self.attack!r}; e.g. Transfer(PGD(eps=0.3), source)")
        if not isinstance(self.source, nn.Module):
            raise ValueError(f"source must be a model (nn.Module), got {self.source!r}")
        if isinstance(self.stretch, bool) or not 1 <= self.stretch < float("inf"):
            raise ValueError(f"stretch must be finite and at least 1, got {self.stretch!r}; 1 changes nothing")
        # An instance has the name, the norm and the criteria of its attack.
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
        # The generators are the outer victim's to keep: kept here, every batch would get the same noise.
        with Victim(self.source, x, keep_generators=False) as source:
            # The source's own: it need not be stochastic, or able to refuse, as the victim may be.
            criterion = source.criterion(criterion.label, criterion.target, safely=True)
            if eps is None:
                here = torch.nonzero(~criterion.reached(source.logits(x))).squeeze(1)
            else:
                here = torch.arange(len(x), device=x.device)
                criterion = _Endless(criterion.label, criterion.target, criterion.share, criterion.rejects)
            if len(here):
                radii = None if eps is None else eps[here]
                found[here] = self.attack._search(
                    source, x[here], criterion.select(here), here, draws.select(here), radii
                ).detach()
            victim.forwards.index_add_(0, rows, source.forwards)
            victim.backwards.index_add_(0, rows, source.backwards)
        return found if self.stretch == 1 else (x + self.stretch * (found - x)).clamp_(0, 1)


@dataclass(frozen=True, repr=False)
class _TransferWithinBudget(Transfer, BudgetAttack):
    eps: float = field(init=False, default=0.3)

    def __post_init__(self) -> None:
        assert isinstance(self.attack, BudgetAttack)
        if self.stretch != 1:
            raise ValueError(
                f"stretch is for minimal attacks, got {self.stretch!r} for {type(self.attack).__name__}, which must "
                "stay within eps"
            )
        object.__setattr__(self, "eps", self.attack.eps)
        super().__post_init__()


class _Endless(Criterion):
    """A criterion that nothing reaches: an attack then climbs to the end of its budget."""

    def reached(self, logits: Tensor) -> Tensor:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
