"""CROWN-IBP training: linear bounds while eps is small, intervals once it has grown."""

from __future__ import annotations

from dataclasses import dataclass

from robustlit.objectives.ibp import IBPTraining


@dataclass(kw_only=True)
class CROWNIBPTraining(IBPTraining):
    """kappa * CE(f(x)) + (1 - kappa) * CE(-bounds of the margins) + regularisers, with linear bounds at first.

    Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning, Hsieh: Towards stable and efficient training of verifiably robust
    neural networks, 2019, arXiv:1906.06316 (equation 9): the bounds are beta * (CROWN-IBP's) + (1 - beta) * (IBP's),
    where beta falls from `first_beta` to `beta` as eps rises. K backward passes for an example while beta is above 0.

    Args:
        first_beta, beta: Weight of the linear bounds at eps 0 and at the end, in [0, 1]; the paper's end at 0 on MNIST.
        eps, norm, warmup, eps_scale, kappa, regularisation, initialise, seed, first_kappa: See `IBPTraining`.

    Raises:
        ValueError: An argument out of range.
    """

    first_beta: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("the linear bounds", "first_beta", "beta")

    @property
    def linear(self) -> float:
        """Weight of the linear bounds at this step, which falls as eps rises."""
        return self.first_beta + self.share * (self.beta - self.first_beta)
