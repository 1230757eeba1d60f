"""AdvGAN: one forward of a generator that was trained for it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.attack import AttackResult, BudgetAttack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.victim import Victim
from robustlit.models.generator import load_generator, perturb
from robustlit.threat import expand


@dataclass(frozen=True)
class AdvGAN(BudgetAttack):
    """x + eps tanh(G(x)), cut to the box, with G from `robustlit.training.AdvGANTraining` (`recipe=advgan`).

    Xiao, Li, Zhu, He, Liu, Song: Generating adversarial examples with adversarial networks, 2018, arXiv:1801.02610.

    An attack costs one forward of the generator, and the victim is only asked for its judgement: two forwards, no
    backward. That leaves out what comes before: training G takes a forward and a backward of the victim (in a black
    box, of the substitute, and the victim's answers) for every training image and epoch. A generator knows the victim
    that it was trained on; against another it is a transfer attack. Its failure says little about a model's robustness.

    Args:
        eps: budget in pixel units. The perturbation scales with it; G is at its best at the budget it was trained for.
        norm: "linf".
        generator: a file that `save_generator` wrote, read when it is first needed; or an `nn.Module` from images
            (B, ...) to numbers of that shape, on their device. A generator with an attribute `target` that is not None
            was trained to reach that one class: a call that asks for another is refused; one that asks for none counts
            any wrong class.

    Raises:
        ValueError: eps out of range, unknown norm, a generator that is neither; at the call: no such file, or a damaged
            one, images of another shape than it was made for, a class that it was not trained to reach.
    """

    name: ClassVar[str] = "advgan"
    needs_gradients: ClassVar[bool] = False
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    generator: nn.Module | str | Path = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.generator, Path):
            object.__setattr__(self, "generator", str(self.generator))
        if not isinstance(self.generator, (nn.Module, str)):
            raise ValueError(
                f"generator must be the path of a saved generator or an nn.Module, got {self.generator!r}; "
                "python train.py recipe=advgan leaves runs/NAME/checkpoints/generator.pt"
            )

    def __repr__(self) -> str:
        # A net prints over many lines; its class tells enough.
        given = self.generator
        shown = repr(given) if isinstance(given, str) else f"<{type(given).__name__}>"
        return f"AdvGAN(norm={self.norm!r}, eps={self.eps!r}, generator={shown})"

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        target: Tensor | None = None,
        index: Tensor | None = None,
        seed: int | None = None,
        eps: float | Tensor | None = None,
    ) -> AttackResult:
        """Attacks a batch; arguments as in `BudgetAttack.run`. `target` must be the class G was trained to reach."""
        # Before those that are classified so already are left out: the error must not depend on them.
        self._check_target(self._generator(x), target)
        return super().run(model, x, y, target=target, index=index, seed=seed, eps=eps)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        generator = self._generator(x)
        self._check_target(generator, criterion.target)
        own = next((p.dtype for p in generator.parameters()), x.dtype)
        with torch.no_grad(), _held_in_eval(generator):
            shift = perturb(_Typed(generator, own), x, expand(eps, x))
        return shift

    def _generator(self, x: Tensor) -> nn.Module:
        if isinstance(self.generator, nn.Module):
            device = next((p.device for p in self.generator.parameters()), x.device)
            if device != x.device:
                raise ValueError(f"the generator is on {device}, the images on {x.device}; move it: generator.to(...)")
            return self.generator
        path = Path(self.generator).absolute()
        # Read again when it was written anew; a missing file is for load_generator to word.
        status = path.stat() if path.is_file() else None
        stamp = status and (status.st_mtime_ns, status.st_size, status.st_ino)
        generator = _loaded(path, stamp, x.device, x.dtype)
        channels, size = generator.in_chans, generator.image_size
        if x.shape[1:] != (channels, size, size):
            raise ValueError(
                f"the generator in {self.generator} was made for images ({channels}, {size}, {size}), "
                f"got {tuple(x.shape[1:])}; train one on these data"
            )
        return generator

    @staticmethod
    def _check_target(generator: nn.Module, target: Tensor | None) -> None:
        if target is None:
            return
        own = getattr(generator, "target", None)
        if own is None:
            raise ValueError(
                "this generator was trained to leave the true class, whichever comes instead; leave target out, or "
                "train one for the class: AdvGANTraining(target=CLASS), recipe=advgan target=CLASS"
            )
        others = sorted({*target.tolist()} - {own})
        if others:
            raise ValueError(
                f"this generator was trained to reach class {own} only, got target {others[0]}; train one for each "
                "class: recipe=advgan target=CLASS"
            )


@lru_cache(maxsize=8)
def _loaded(path: Path, stamp: object, device: torch.device, dtype: torch.dtype) -> nn.Module:
    # Outside of inference mode, whose tensors could not take part in anything else later.
    with torch.inference_mode(False):
        return load_generator(path).to(device, dtype)


class _Typed(nn.Module):
    """A net of one precision for images of another."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.dtype)).to(x.dtype)


def _held_in_eval(net: nn.Module) -> ExitStack:
    """Eval mode inside the block, each submodule's own mode after it; the flags are written as `Victim` does."""
    stack = ExitStack()
    for module in net.modules():
        if module.training:
            module.training = False
            stack.callback(setattr, module, "training", True)
    return stack
