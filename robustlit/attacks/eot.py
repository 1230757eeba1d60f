"""EOT: a randomised model, attacked in expectation and judged by votes."""

from __future__ import annotations

from torch import Tensor, nn

from robustlit.checks import check_count
from robustlit.classifier import DRAWS, attack_view, undefended


class EOT(nn.Module):
    """Declares a model stochastic: gradients are averaged over `n` draws, successes judged by the votes of 20 others.

    Athalye, Engstrom, Ilyas, Kwok: Synthesizing robust adversarial examples, 2018, arXiv:1707.07397. A witness that
    fools one lucky draw is none: the votes that count are drawn after the search is over. Any attack will do,

        PGD(eps=8 / 255).run(EOT(model, 20), x, y)

    at n forwards and backwards for each gradient and 20 forwards for each look; the passes are counted so. With a
    `seed` the noise of the model is the same on every run, whether it draws from PyTorch, NumPy or `random`; it does
    depend on which examples share a batch. Attacks hold the model in eval mode, so noise must not wait for train mode,
    as that of `nn.Dropout` does.

    Args:
        model: from images (B, C, H, W) in [0, 1] to logits (B, K), different on every call; its `attack_view()` and
            `undefended()` are passed on.
        n: draws for each gradient.

    Raises:
        ValueError: n out of range.
    """

    stochastic = True

    def __init__(self, model: nn.Module, n: int = DRAWS) -> None:
        super().__init__()
        check_count(n, "n")
        self.model = model
        self.draws = n

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of one draw."""
        return self.model(x)

    def attack_view(self) -> nn.Module:
        """What the wrapped model gives to be differentiated."""
        return attack_view(self.model)

    def undefended(self) -> nn.Module:
        """The wrapped model without its defense; itself, noise and all, where the wrapped model does not say."""
        inner = undefended(self.model)
        return self if inner is self.model else inner

    def extra_repr(self) -> str:
        """The number of draws, for printing."""
        return f"draws={self.draws}"
