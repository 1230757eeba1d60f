"""JumpReLU: a net whose activations are given a jump, fixed or random, with the twin that shows what it is worth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from robustlit.attacks.bpda import BPDA
from robustlit.models.activations import Jump, JumpReLU, RandomJumpReLU, replace_activations

SURROGATES = ("smooth", "activation", "jump", "undefended")


class _WithJumps(nn.Module):
    """What the fixed and the random defense share: a copy of the net with jumps, and its twins."""

    stochastic = False

    def __init__(
        self,
        net: nn.Module,
        build: Callable[[nn.Module], nn.Module],
        surrogate: str,
        types: Iterable[type[nn.Module]] | None,
    ) -> None:
        super().__init__()
        if surrogate not in SURROGATES:
            raise ValueError(
                f"surrogate must be one of {', '.join(SURROGATES)}, got {surrogate!r}; leave it out for smooth"
            )
        self.net = copy.deepcopy(net)  # the caller's stays without jumps
        self.replaced = {
            path: kind.__name__ for path, kind in replace_activations(self.net, build, types=types).items()
        }
        self.surrogate = surrogate

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the net with jumps."""
        return self.net(x)

    def attack_view(self) -> nn.Module:
        """What an adaptive attacker differentiates, sharing the weights; see `surrogate`."""
        if self.surrogate == "jump":
            return self
        if self.surrogate == "undefended":
            return self.undefended()
        if self.surrogate == "activation":
            return self._twin(lambda jump: BPDA(jump, backward=jump.activation))
        return self._twin(lambda jump: BPDA(jump, backward=jump.smooth))

    def undefended(self) -> nn.Module:
        """The same weights with the activations that stood there before."""
        return self._twin(lambda jump: jump.activation)

    def _twin(self, instead: Callable[[Jump], nn.Module]) -> nn.Module:
        # A copy in which every tensor is the net's own, and every jump is something else, wherever it is referred to.
        memo: dict[int, object] = {id(tensor): tensor for tensor in (*self.net.parameters(), *self.net.buffers())}
        memo |= {id(module): instead(module) for module in self.net.modules() if isinstance(module, Jump)}
        return copy.deepcopy(self.net, memo)

    def extra_repr(self) -> str:
        """The surrogate, for printing."""
        return f"surrogate={self.surrogate}"


class JumpReLUDefense(_WithJumps):
    """The retrofit of Erichson, Yao, Mahoney: a trained net that ignores small signals in every layer.

    JumpReLU: a retrofit defense strategy for adversarial attacks, 2019, arXiv:1904.03750. Put around an untrained net
    it is trained with its jumps from the start, like any model.

    The jump hides from the attacker what lies just below the threshold: its own gradient there is 0, and infinite at
    the threshold itself. Four twins can be differentiated in its place, all judged on the real forward (`surrogate`):

    - "smooth": the real value; the gradient of the activation times a sigmoid, a tenth of kappa wide, so that an
      attacker sees what opening or closing a unit does. The strongest under PGD and DDN.
    - "activation": the real value, the gradient of the plain activation (BPDA, arXiv:1802.00420). At small kappa it is
      the better guide for attacks that walk one short path, BIM and NewtonFool: a claim takes the least over both.
    - "jump": the defense itself with its own gradient.
    - "undefended": value and gradient of the net without jumps.

    Args:
        net: trained or not, from images (B, C, H, W) in [0, 1] to logits (B, K); a copy of it is taken.
        kappa: threshold in units of the pre-activations, finite and at least 0. The 2019 report's is 0.0645.
        surrogate: "smooth", "activation", "jump" or "undefended".
        types: the classes of activations to replace; None takes those of PyTorch and timm.

    Attributes:
        replaced: path in `net` -> name of the class that got a jump.

    Raises:
        ValueError: kappa out of range, unknown surrogate, a net without activation modules or with jumps already.
    """

    def __init__(
        self,
        net: nn.Module,
        kappa: float = 0.0645,
        *,
        surrogate: str = "smooth",
        types: Iterable[type[nn.Module]] | None = None,
    ) -> None:
        super().__init__(net, lambda activation: JumpReLU(kappa, activation), surrogate, types)


class RandomJumpReLUDefense(_WithJumps):
    """`JumpReLUDefense` whose threshold is drawn from U(low, high), once a layer and forward.

    The randomised variant of Erichson, Yao, Mahoney, 2019, arXiv:1904.03750: U(0.6 kappa, kappa). It is stochastic:
    attacks average gradients over draws, and it is judged by the votes of 20 fresh ones. Randomness that hides the
    gradient is no merit (Athalye, Carlini, Wagner, 2018, arXiv:1802.00420): the "smooth" twin here answers what the
    jump does on average, z (z - low) / (high - low) between the two, whose gradient needs no luck.

    Args:
        net: trained or not, from images (B, C, H, W) in [0, 1] to logits (B, K); a copy of it is taken.
        low: least threshold, at least 0.
        high: largest threshold, finite and at least `low`. The defaults are 0.6 and 1 times the 2019 report's 0.0645.
        surrogate: "smooth", "activation", "jump" or "undefended", as in `JumpReLUDefense`.
        draws: over how many draws attacks average a gradient.
        types: the classes of activations to replace; None takes those of PyTorch and timm.

    Attributes:
        replaced: path in `net` -> name of the class that got a jump.

    Raises:
        ValueError: low or high out of range, unknown surrogate, a net without activation modules or with jumps already.
    """

    stochastic = True

    def __init__(
        self,
        net: nn.Module,
        low: float = 0.6 * 0.0645,
        high: float = 0.0645,
        *,
        surrogate: str = "smooth",
        draws: int = 20,
        types: Iterable[type[nn.Module]] | None = None,
    ) -> None:
        super().__init__(net, lambda activation: RandomJumpReLU(low, high, activation), surrogate, types)
        self.draws = draws
