"""AdvGAN: one forward of a trained generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlit.attacks.attack import Batch, BudgetAttack
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.surroundings import held_in_eval
from robustlit.attacks.victim import Victim
from robustlit.models.generator import load_generator, perturb
from robustlit.threat import expand


@dataclass(frozen=True)
class AdvGAN(BudgetAttack):
    """x + eps tanh(G(x)), clipped to the box, with G from `robustlit.training.AdvGANTraining` (`recipe=advgan`).

    Xiao, Li, Zhu, He, Liu, Song: Generating adversarial examples with adversarial networks, 2018, arXiv:1801.02610.
    An attack costs one forward of the generator and two of the model, which only judges; training is not included. A
    generator is trained on one model; against another it is a transfer attack. Its failure proves little.

    Args:
        eps: Budget in pixel units. The perturbation scales with it; G is best at the budget it was trained for.
        norm: "linf".
        generator: A file that `save_generator` wrote, read when first needed; or an `nn.Module` from images (B, ...) to
            numbers of that shape, on their device. A generator whose attribute `target` is not None was trained to
            reach that class: a call with another target is an error; a call without one counts any wrong class.

    Raises:
        ValueError: eps out of range, unknown norm, an invalid generator; at the call: a missing or damaged file, images
            of another shape than it was made for, a class that it was not trained to reach.
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
        # A net prints over many lines; its class is enough.
        given = self.generator
        shown = repr(given) if isinstance(given, str) else f"<{type(given).__name__}>"
        return f"AdvGAN(norm={self.norm!r}, eps={self.eps!r}, generator={shown})"

    def _check(self, given: Batch) -> None:
        # For the whole batch, misclassified examples included: the error must not depend on them.
        self._check_target(self._generator(given.x), given.target)
        super()._check(given)

    def _search(
        self, victim: Victim, x: Tensor, criterion: Criterion, rows: Tensor, draws: Draws, eps: Tensor | None
    ) -> Tensor:
        assert eps is not None
        generator = self._generator(x)
        self._check_target(generator, criterion.target)
        own = next((p.dtype for p in generator.parameters()), x.dtype)
        with torch.no_grad(), held_in_eval(generator):
            return perturb(_Typed(generator, own), x, expand(eps, x))

    def _generator(self, x: Tensor) -> nn.Module:
        if isinstance(self.generator, nn.Module):
            device = next((p.device for p in self.generator.parameters()), x.device)
            if device != x.device:
                raise ValueError(f"the generator is on {device}, the images on {x.device}; move it: generator.to(...)")
            return self.generator
        path = Path(self.generator).absolute()
        # Read again when the file has changed; load_generator reports a missing file.
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
                "this generator was trained to leave the true class for any other; leave target out, or "
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
    # Outside inference mode: its tensors could not be used with gradients later.
    with torch.inference_mode(False):
        return load_generator(path).to(device, dtype)


class _Typed(nn.Module):
    """Run a net of one precision on images of another."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.dtype)).to(x.dtype)
