"""EOT: attack a randomised model in expectation and judge it by votes."""

from __future__ import annotations

from torch import Tensor, nn

from robustlit.attacks.wrapper import Wrapper
from robustlit.checks import check_count
from robustlit.classifier import DRAWS, attack_view, check_not_hidden


class EOT(Wrapper):
    """Declare a model stochastic: gradients are averaged over `n` draws, success is judged by the votes of 20 others.

    Athalye, Engstrom, Ilyas, Kwok: Synthesizing robust adversarial examples, 2018, arXiv:1707.07397. An image that
    misleads a single draw is not an adversarial example: the votes that count are drawn after the search. It works
    with any attack,

        PGD(eps=8 / 255).run(EOT(model, 20), x, y)

    at n forwards and backwards for each gradient and 20 forwards for each judgement, which the pass counts include.
    With a `seed` the noise of the model is the same on every run, whether it draws from PyTorch, NumPy or `random`; it
    depends on which examples share a batch. Attacks hold the model in eval mode, where `nn.Dropout` adds no noise.

    Args:
        model: From images (B, C, H, W) in [0, 1] to logits (B, K), different on every call. Its `attack_view()`,
            `undefended()` and `rejects` are passed on.
        n: Draws for each gradient.

    Raises:
        ValueError: n is not a whole number of at least 1, or the model hides a defense.
    """

    stochastic = True

    def __init__(self, model: nn.Module, n: int = DRAWS) -> None:
        super().__init__(model)
        check_count(n, "n")
        check_not_hidden(model)
        self.draws = n

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of one draw."""
        return self.model(x)

    def attack_view(self) -> nn.Module:
        """Return the attack view of the wrapped model."""
        return attack_view(self.model)

    def extra_repr(self) -> str:
        """Return the number of draws, for printing."""
        return f"draws={self.draws}"
