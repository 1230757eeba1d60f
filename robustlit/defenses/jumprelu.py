"""JumpReLU: a net whose activations get a fixed or random jump, and the attack views that test it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import Tensor, nn

from robustlit.attacks.bpda import BPDA
from robustlit.checks import check_choice
from robustlit.models.activations import Jump, JumpReLU, RandomJumpReLU, replace_activations

SURROGATES = ("smooth", "activation", "jump", "undefended")
Types: TypeAlias = Iterable[type[nn.Module]] | None


class _WithJumps(nn.Module):
    """What the fixed and the random defense share: a copy of the net with jumps, and its attack views."""

    stochastic = False

    def __init__(self, net: nn.Module, build: Callable[[nn.Module], nn.Module], surrogate: str, types: Types) -> None:
        super().__init__()
        check_choice(surrogate, "surrogate", SURROGATES)
        self.net = copy.deepcopy(net)  # the caller's net stays without jumps
        replaced = replace_activations(self.net, build, types=types)
        self.replaced = {path: kind.__name__ for path, kind in replaced.items()}  # by path: class that got a jump
        self.surrogate = surrogate

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of the net with jumps."""
        return self.net(x)

    def attack_view(self) -> nn.Module:
        """Return the model that an adaptive attacker differentiates, with the same weights; see `surrogate`."""
        if self.surrogate == "jump":
            return self
        if self.surrogate == "undefended":
            return self.undefended()
        if self.surrogate == "activation":
            return self._copy(lambda jump: BPDA(jump, backward=jump.activation))
        return self._copy(lambda jump: BPDA(jump, backward=jump.smooth))

    def undefended(self) -> nn.Module:
        """Return the same weights with the original activations."""
        return self._copy(lambda jump: jump.activation)

    def _copy(self, instead: Callable[[Jump], nn.Module]) -> nn.Module:
        """Return a copy that shares every tensor with the net, with every jump replaced."""
        memo: dict[int, object] = {id(tensor): tensor for tensor in (*self.net.parameters(), *self.net.buffers())}
        memo |= {id(module): instead(module) for module in self.net.modules() if isinstance(module, Jump)}
        return copy.deepcopy(self.net, memo)

    def extra_repr(self) -> str:
        return f"surrogate={self.surrogate}"


class JumpReLUDefense(_WithJumps):
    """A trained net that ignores small signals in every layer.

    Erichson, Yao, Mahoney: JumpReLU: a retrofit defense strategy for adversarial attacks, 2019, arXiv:1904.03750. An
    untrained net can also be trained with its jumps from the start.

    The jump's own gradient is 0 below the threshold and infinite at it, which hides from an attacker what opening a
    unit does. Attacks differentiate a surrogate instead, and are judged on the real forward:

    - "smooth": the real value; the gradient of the activation times a sigmoid, a tenth of kappa wide, so that an
      attacker sees the effect of opening or closing a unit. The strongest under PGD and DDN.
    - "activation": the real value, the gradient of the plain activation (BPDA, arXiv:1802.00420). At small kappa it is
      stronger for attacks along one short path, BIM and NewtonFool: a claim should take the lower accuracy of both.
    - "jump": the defense itself with its own gradient.
    - "undefended": value and gradient of the net without jumps.

    Args:
        net: Trained or not, from images (B, C, H, W) in [0, 1] to logits (B, K); it is copied.
        kappa: Threshold in units of the pre-activations, finite and at least 0; 0.0645 in the 2019 report.
        surrogate: "smooth", "activation", "jump" or "undefended".
        types: Classes of activations to replace; None takes those of PyTorch and timm.

    Raises:
        ValueError: kappa is out of range, the surrogate unknown, or the net has no activation modules or has jumps.
    """

    def __init__(
        self, net: nn.Module, kappa: float = 0.0645, *, surrogate: str = "smooth", types: Types = None
    ) -> None:
        super().__init__(net, lambda activation: JumpReLU(kappa, activation), surrogate, types)


class RandomJumpReLUDefense(_WithJumps):
    """`JumpReLUDefense` with a threshold drawn from U(low, high), once per layer and forward.

    The randomised variant of Erichson, Yao, Mahoney, 2019, arXiv:1904.03750: U(0.6 kappa, kappa). It is stochastic:
    attacks average gradients over draws, and it is judged by the votes of 20 fresh ones. Randomness must not hide the
    gradient (Athalye, Carlini, Wagner, 2018, arXiv:1802.00420): the "smooth" surrogate here is the expected value of
    the jump, z (z - low) / (high - low) between the two.

    Args:
        net, surrogate, types: See `JumpReLUDefense`, also for errors.
        low: Least threshold, at least 0.
        high: Largest threshold, finite and at least `low`. The defaults are 0.6 and 1 times the 2019 report's 0.0645.
        draws: Number of draws over which attacks average a gradient.
    """

    stochastic = True

    def __init__(
        self, net: nn.Module, low: float = 0.6 * 0.0645, high: float = 0.0645, *, surrogate: str = "smooth",
        draws: int = 20, types: Types = None,
    ) -> None:  # fmt: skip
        super().__init__(net, lambda activation: RandomJumpReLU(low, high, activation), surrogate, types)
        self.draws = draws
