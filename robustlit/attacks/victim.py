"""The model as an attack meets it: the one room where PyTorch's traps live.

Entered as a context manager, a Victim holds every submodule in eval mode (each flag restored on leaving, frozen
layers included), turns gradients on under `no_grad` and `inference_mode`, turns autocast off, leaves parameters'
`.grad` and `requires_grad` alone (gradients are taken with respect to the input only), puts the global random
generators back, and counts forward and backward passes per example. Of a stochastic model it averages gradients over
draws (EOT: Athalye, Engstrom, Ilyas, Kwok: Synthesizing robust adversarial examples, 2018, arXiv:1707.07397) and
judges by the votes of fresh ones, so that no attack needs to know.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor, nn

from robustlit.classifier import attack_view, check_logits, draws_of, is_stochastic

LossPerExample = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,)
LossesPerExample = Callable[[Tensor], Tensor]  # logits (B, K) -> (B, k)
VOTES = 20  # fresh draws by which a stochastic model is judged
_NO_GRADIENT = (
    "{name} gives no gradient with respect to its input, so a gradient-based attack cannot see it; give the model an "
    "attack_view() that is differentiable (see robustlit.attacks.BPDA), or use an attack that needs no gradients "
    "(Square). A model without gradients is not thereby robust."
)


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
        draws: over how many draws a gradient is averaged; None asks the model (1 unless it is stochastic).

    Attributes:
        forwards, backwards: (B,) int64, passes that each example has cost.
        finite: (B,) bool, whether every logit that an example ever got was finite.
    """

    def __init__(
        self,
        model: nn.Module,
        like: Tensor,
        *,
        eval_mode: bool = True,
        ambient_autocast: bool = False,
        keep_generators: bool = True,
        draws: int | None = None,
    ) -> None:
        self.model = model
        self.view = model  # the twin, once entered
        self.draws = draws_of(model) if draws is None else draws
        self.batch, self.device = len(like), like.device
        self.eval_mode = eval_mode
        self.ambient_autocast = ambient_autocast
        self.keep_generators = keep_generators
        self._modes: list[tuple[nn.Module, bool]] = []
        self._works_in_place: dict[int, bool] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Victim:
        with ExitStack() as stack:  # closed here only if entering fails half way
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            # Only here, as ordinary tensors: those made in inference mode cannot be counted up outside it.
            self.forwards = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
            self.backwards = torch.zeros_like(self.forwards)
            self.finite = torch.ones_like(self.forwards, dtype=torch.bool)
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

        Of a stochastic model: log shares of the votes of `VOTES` fresh draws, at as many forwards.

        Args:
            x: images (b, ...).
            rows: (b,) which examples of the batch these are; None for all, in order.
        """
        with torch.no_grad():
            if not self.is_stochastic:
                return self._forward(self.model, x, rows)
            votes: Tensor | None = None
            for _ in range(VOTES):
                logits = self._forward(self.model, x, rows)
                # Votes decide; a thousandth of the probabilities orders points that have the same votes.
                vote = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
                vote = vote.add_(logits.softmax(1), alpha=1e-3).where(logits.isfinite().all(1, keepdim=True), logits)
                votes = vote if votes is None else votes + vote
            assert votes is not None
            return votes.div_(VOTES * (1 + 1e-3)).clamp_min_(1e-12).log_()

    def gradient(self, x: Tensor, loss: LossPerExample, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and one backward through the attack view; of a stochastic model, the mean over its draws.

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
        logits, losses, gradient = self._gradient(x, loss, rows)
        for _ in range(self.draws - 1):
            again = self._gradient(x, loss, rows)
            logits, losses, gradient = logits + again[0], losses + again[1], gradient.add_(again[2])
        if self.draws > 1:
            logits, losses, gradient = logits / self.draws, losses / self.draws, gradient.div_(self.draws)
        return logits, losses, gradient

    def _gradient(self, x: Tensor, loss: LossPerExample, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_(True)
        logits = self._forward(self.view, leaf, rows)
        losses = loss(logits)
        gradient = self._backward(losses.sum(), leaf, rows)
        return logits.detach(), losses.detach(), gradient

    def jacobian(
        self, x: Tensor, losses: LossesPerExample, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of several losses at one forward and one backward for each; of a stochastic model, the means.

        Args:
            x: images (b, ...).
            losses: logits (b, K) -> (b, k), the quantities to differentiate.
            rows: (b,) which examples of the batch these are; None for all, in order.

        Returns:
            The view's logits (b, K), the losses (b, k), and their gradients (b, k, ...).

        Raises:
            ValueError: the model gives no gradient.
        """
        sums: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(self.draws):
            leaf = x.detach().requires_grad_(True)
            logits = self._forward(self.view, leaf, rows)
            values = losses(logits)
            heads = values.sum(0).unbind()
            gradients = [self._backward(h, leaf, rows, retain_graph=h is not heads[-1]) for h in heads]
            now = logits.detach(), values.detach(), torch.stack(gradients, 1)
            sums = now if sums is None else (sums[0] + now[0], sums[1] + now[1], sums[2].add_(now[2]))
        assert sums is not None
        return sums if self.draws == 1 else (sums[0] / self.draws, sums[1] / self.draws, sums[2].div_(self.draws))

    def _forward(self, net: nn.Module, x: Tensor, rows: Tensor | None) -> Tensor:
        # A net whose first layer works in place would change the caller's images, or refuse a leaf that wants
        # gradients. Its first batch is a copy, which tells; the others are copied only where it needs that.
        works_in_place = self._works_in_place.get(id(net))
        given = x if works_in_place is False else x.clone()
        version = given._version
        logits = check_logits(net(given), len(x))
        if works_in_place is None:
            self._works_in_place[id(net)] = given._version != version
        self._count(self.forwards, rows)
        finite = logits.detach().sum(1).isfinite()
        if rows is None:
            self.finite &= finite
        else:
            self.finite[rows] &= finite
        return logits

    def _backward(self, loss: Tensor, leaf: Tensor, rows: Tensor | None, retain_graph: bool = False) -> Tensor:
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=retain_graph, allow_unused=True)
        if gradient is None:
            raise ValueError(_NO_GRADIENT.format(name=type(self.view).__name__))
        self._count(self.backwards, rows)
        # A pixel without a finite slope (a root at 0) must not spoil the others or spread NaN to every later iterate.
        return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # a copy, the caller's to write into

    @property
    def is_stochastic(self) -> bool:
        """Whether the model's own noise takes part in its answer."""
        return is_stochastic(self.model)

    @property
    def sees_itself(self) -> bool:
        """Whether the attack view is the model itself and its answer is no draw, so that its logits may judge."""
        return self.view is self.model and not self.is_stochastic

    @staticmethod
    def _count(counter: Tensor, rows: Tensor | None) -> None:
        if rows is None:
            counter += 1
        else:
            counter.index_add_(0, rows, torch.ones_like(rows))
