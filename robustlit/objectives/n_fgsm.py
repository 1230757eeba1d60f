"""N-FGSM: adversarial training with one step from strong noise, which is not projected."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robustlit.attacks.ascent import GradientAscent
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import LogOdds
from robustlit.attacks.victim import Victim
from robustlit.checks import check_not_negative
from robustlit.objectives.inner import InnerMaximisation
from robustlit.objectives.label_smoothing import LabelSmoothing
from robustlit.objectives.objective import ObjectiveOutput
from robustlit.threat import Ball


@dataclass
class NFGSM(InnerMaximisation):
    """min over weights of the cross-entropy at x + noise + step, noise uniform in a ball of `noise` times eps.

    De Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania: Make some noise: reliable and efficient single-step adversarial
    training, 2022, arXiv:2202.01181 (algorithm 1). The step starts from the noisy image and is as long as eps; the sum
    is cut to [0, 1] and not to the ball, so inputs trained on lie up to 3 eps away. Both the strong noise and leaving
    out the projection are what keeps it from overfitting catastrophically; watch it by `CatastrophicOverfitting` all
    the same. A training step costs two passes forward and backward, PGD-10 eleven.

    Args:
        attack: FGSM, which gives the budget, the norm and the length of the step (eps where none is given). Its own
            random start is not used.
        noise: Radius of the noise as a multiple of eps, at least 0; 2 in the paper, up to 4 at larger eps.
        warmup, eps_scale, attack_in_eval_mode: See `AdversarialTraining`.
        label_smoothing: Probability that the loss trained on spreads over all classes, in [0, 1); see `LabelSmoothing`.

    Raises:
        ValueError: A negative noise, label_smoothing outside [0, 1), an attack of several steps, and as
            `AdversarialTraining`.
    """

    attack: GradientAscent
    noise: float = 2.0
    warmup: float = 0.0
    eps_scale: float = 1.0
    attack_in_eval_mode: bool = True
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(self.noise, "noise", "; it is a multiple of eps, 2 in the paper")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be a probability in [0, 1), got {self.label_smoothing}; 0 for none")
        self.check(None)
        if self.attack.steps != 1:
            raise ValueError(f"attack must be FGSM, one step, got {self.attack!r}; several steps: AdversarialTraining")

    def worst_inputs(self, classifier: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return x + noise + step (B, C, H, W) within [0, 1], detached."""
        norm, mode = self.attack.norm, self.attack_in_eval_mode
        radius = x.new_full((len(x),), self.eps)  # (B,)
        noisy = Ball(x, self.noise * radius, norm).random_point(Draws(None, radius))
        with Victim(classifier, x, eval_mode=mode, training=True, draws=1) as victim:
            gradient = victim.direction(noisy, LogOdds(y))
        size = radius * self.attack.step_over_eps
        return Ball(noisy, size, norm).step(noisy, gradient, size)  # a ball around the noisy image: no projection

    def loss_at(self, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> ObjectiveOutput:
        """Return the mean cross-entropy of the adversarial versions, smoothed."""
        return LabelSmoothing(self.label_smoothing)(classifier, x_adv, y)
