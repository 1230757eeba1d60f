"""The model as an attack meets it: the one room where PyTorch's traps live.

Entered as a context manager, a Victim holds every submodule in eval mode (each flag restored on leaving, frozen
layers included), turns gradients on under `no_grad` and `inference_mode`, turns autocast off, leaves parameters'
`.grad` and `requires_grad` alone (gradients are taken with respect to the input only), puts the global random
generators back, and counts forward and backward passes per example.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor, nn

from robustlit.classifier import attack_view, check_logits

LossPerExample = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,)


class Victim:
    """A model under attack.

    Args:
        model: the classifier, defended or not; successes are judged on its own forward.
        like: the images (B, ...), for the batch size and the device.
        eval_mode: hold every submodule in eval mode. False leaves the modes as they are (a training-time option).
        ambient_autocast: keep the precision of the surrounding autocast region (training in bf16). Under float16 the
            attack runs in float32 all the same: no gradient scaler protects the attack's loss, its gradients
            underflow, and sign(0) = 0 makes a falsely weak attack. Evaluation leaves this False.
        keep_generators: restore the global random generators on leaving (a stochastic model draws from them).

    Attributes:
        forwards, backwards: (B,) int64, passes that each example has cost.
    """

    def __init__(
        self,
        model: nn.Module,
        like: Tensor,
        *,
        eval_mode: bool = True,
        ambient_autocast: bool = False,
        keep_generators: bool = True,
    ) -> None:
        self.model = model
        self.view = model  # the twin, once entered
        self.batch, self.device = len(like), like.device
        self.eval_mode = eval_mode
        self.ambient_autocast = ambient_autocast
        self.keep_generators = keep_generators
        self._modes: list[tuple[nn.Module, bool]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Victim:
        with ExitStack() as stack:  # closed here only if entering fails half way
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            # Only here, as ordinary tensors: those made in inference mode cannot be counted up outside it.
            self.forwards = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
            self.backwards = torch.zeros_like(self.forwards)
            kind = self.device.type
            if torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
                keep = self.ambient_autocast and dtype is not torch.float16
                # Lightning turns the cache of cast weights off; an attack's many passes are over the same weights.
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=keep, cache_enabled=True))
            if self.keep_generators:
                devices = [self.device] if kind == "cuda" else []
                stack.enter_context(torch.random.fork_rng(devices=devices))
            # Asked only here: a twin built on the fly may draw numbers, and in inference mode would get no gradients.
            self.view = attack_view(self.model)
            if self.eval_mode:
                stack.callback(self._restore_modes)
                self._hold_eval()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _hold_eval(self) -> None:
        # The flag is written directly: a net that overrides train() to freeze its BatchNorm would not come back as
        # it was from train(True), and its twin may share layers with it.
        seen: dict[int, nn.Module] = {}
        for root in (self.model, self.view):
            for module in root.modules():
                seen.setdefault(id(module), module)
        for module in seen.values():
            if module.training:
                self._modes.append((module, True))
                module.training = False

    def _restore_modes(self) -> None:
        for module, training in self._modes:
            module.training = training
        self._modes.clear()

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (B, K) of the real model, without gradients; one forward for each row.

        Args:
            x: images (b, ...).
            rows: (b,) which examples of the batch these are; None for all, in order.
        """
        with torch.no_grad():
            logits = check_logits(self.model(x.clone()), len(x))  # a copy: a first layer may work in place
        self._count(self.forwards, rows)
        return logits

    def gradient(self, x: Tensor, loss: LossPerExample, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and one backward through the attack view.

        Args:
            x: images (b, ...).
            loss: logits (b, K) -> (b,), the quantity to climb. Summed, so that an example's gradient does not depend
                on how many others are in the batch.
            rows: (b,) which examples of the batch these are; None for all, in order.

        Returns:
            The view's logits (b, K), the losses (b,), and the gradient of each loss with respect to its image (b, ...).

        Raises:
            ValueError: the model gives no gradient.
        """
        leaf = x.detach().requires_grad_(True)
        logits = check_logits(self.view(leaf.clone()), len(x))
        losses = loss(logits)
        gradient = None
        if losses.requires_grad:
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise ValueError(
                f"{type(self.view).__name__} gives no gradient with respect to its input, so a gradient-based attack "
                "cannot see it; give the model an attack_view() that is differentiable, or use an attack that needs "
                "no gradients. A model without gradients is not thereby robust."
            )
        self._count(self.forwards, rows)
        self._count(self.backwards, rows)
        # A pixel without a finite slope (a root at 0) must not spoil the others or spread NaN to every later iterate.
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # a copy, the caller's to write into
        return logits.detach(), losses.detach(), gradient

    @property
    def sees_itself(self) -> bool:
        """Whether the attack view is the model itself, so that its logits may judge."""
        return self.view is self.model

    @staticmethod
    def _count(counter: Tensor, rows: Tensor | None) -> None:
        if rows is None:
            counter += 1
        else:
            counter.index_add_(0, rows, torch.ones_like(rows))
