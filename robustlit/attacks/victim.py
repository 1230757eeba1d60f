"""The model as an attack meets it: the one room where PyTorch's traps live.

Entered as a context manager, a Victim holds every submodule in eval mode (each flag restored on leaving, frozen
layers included), turns gradients on under `no_grad` and `inference_mode`, turns autocast off, leaves parameters'
`.grad` and `requires_grad` alone (gradients are taken with respect to the input only), puts the global random
generators back, and counts forward and backward passes per example. Of a stochastic model it averages gradients over
draws (EOT: Athalye, Engstrom, Ilyas, Kwok: Synthesizing robust adversarial examples, 2018, arXiv:1707.07397) and
judges by the votes of fresh ones, so that no attack needs to know.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.classifier import attack_view, can_reject, check_logits, draws_of, is_stochastic

LossPerExample = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,)
LossesPerExample = Callable[[Tensor], Tensor]  # logits (B, K) -> (B, k)
VOTES = 20  # fresh draws by which a stochastic model is judged
_HALF = 0.48  # 10 votes of 20 (a thousandth of each goes by probability, so not quite 0.5)
_SAFE = 0.63  # 13 votes of 20: a search that stopped at a bare half would lose every other recount
_NO_GRADIENT = (
    "{name} gives no gradient with respect to its input, so a gradient-based attack cannot see it; give the model an "
    "attack_view() that is differentiable (see robustlit.attacks.BPDA), or use an attack that needs no gradients "
    "(Square). A model without gradients is not thereby robust."
)
_SOMETIMES_IN_PLACE = (
    "{name} changes its input in place, but did not on its first batch: work on a copy in its forward (x = x.clone()), "
    "or the images under attack are corrupted"
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
        self._opening: tuple[Tensor, Tensor] | None = None
        self._works_in_place: dict[int, bool] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Victim:
        with ExitStack() as stack:  # closed here only if entering fails half way
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            # Only here, as ordinary tensors: those made in inference mode cannot be counted up outside it.
            self.forwards = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
            self.backwards = torch.zeros_like(self.forwards)
            self._not_finite = torch.zeros_like(self.forwards)
            kind = self.device.type
            if torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
                keep = self.ambient_autocast and dtype is not torch.float16
                # Lightning turns the cache of cast weights off; an attack's many passes are over the same weights.
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=keep, cache_enabled=True))
            if self.keep_generators:
                devices = [self.device] if kind == "cuda" else []
                stack.enter_context(torch.random.fork_rng(devices=devices))
                if self.is_stochastic:  # random resizing and the like are often drawn from these
                    stack.callback(random.setstate, random.getstate())
                    stack.callback(np.random.set_state, np.random.get_state())
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

    def reseed(self, seed: int, index: Tensor) -> None:
        """Seeds the generators that a stochastic model may draw from, so that its noise is the same on every run.

        By the seed and the numbers of the examples (B,): the same noise in every batch would be one draw, not many.
        """
        key = Draws(seed, index).uniform(torch.zeros(len(index), 2, dtype=torch.float64, device=index.device))
        number = int((key * 2**24).sum()) % 2**32
        random.seed(number)
        np.random.seed(number)
        torch.default_generator.manual_seed(number)  # torch.manual_seed would reset every GPU; we restore only ours
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(number)
        elif self.device.type != "cpu":
            torch.manual_seed(number)

    def criterion(self, label: Tensor, target: Tensor | None = None, *, safely: bool = False) -> Criterion:
        """What counts as won, (B,) labels and targets: of a stochastic model, at least half of the votes.

        The votes against the label are counted together, whichever classes they are for: a model that is misled in four
        draws of five is not robust because the fifth's class comes first. `safely` asks for 13 of the 20.
        """
        share = 0.0 if not self.is_stochastic else _SAFE if safely else _HALF
        return Criterion(label, target, share, can_reject(self.model))

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (B, K) of the real model, without gradients; one forward for each row.

        Of a stochastic model: log shares of the votes of `VOTES` fresh draws, at as many forwards; NaN where the
        logits of any draw are not finite.

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
                vote = vote.add_(logits.softmax(1), alpha=1e-3)
                vote = vote.masked_fill_(~logits.isfinite().all(1, keepdim=True), float("nan"))
                votes = vote if votes is None else votes + vote
            assert votes is not None
            return votes.div_(VOTES * (1 + 1e-3)).clamp_min_(1e-12).log_()

    def open(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the whole batch, as `logits` gives them, kept ready for `gradient_of_opening`.

        An attack that starts at the image saves a forward by it. Only where the model sees itself.
        """
        leaf = x.detach().requires_grad_(True)
        logits = self._forward(self.view, leaf, None)
        self._opening = leaf, logits
        return logits.detach()

    def gradient_of_opening(self, loss: LossPerExample, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `gradient` returns for the examples `rows` (b,) of the batch that was opened; one backward. Once.

        The others of the batch stand idle in that backward, which is not counted for them: nobody attacks them.
        """
        assert self._opening is not None
        (leaf, every), self._opening = self._opening, None
        logits = every[rows]
        losses = loss(logits)
        gradient = self._backward(losses.sum(), leaf, rows)[rows]
        return logits.detach(), losses.detach(), gradient

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
        logits, values, gradients = self._jacobian(x, losses, rows)
        for _ in range(self.draws - 1):
            again = self._jacobian(x, losses, rows)
            logits, values, gradients = logits + again[0], values + again[1], gradients.add_(again[2])
        if self.draws > 1:
            logits, values, gradients = logits / self.draws, values / self.draws, gradients.div_(self.draws)
        return logits, values, gradients

    def _jacobian(self, x: Tensor, losses: LossesPerExample, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_(True)
        logits = self._forward(self.view, leaf, rows)
        values = losses(logits)  # (b, k)
        heads = values.sum(0).unbind()
        # Written one by one: a stack of a thousand classes' gradients would hold each of them twice.
        gradients = x.new_empty(len(x), len(heads), *x.shape[1:])
        for k, head in enumerate(heads):
            gradients[:, k] = self._backward(head, leaf, rows, retain_graph=k < len(heads) - 1)
        return logits.detach(), values.detach(), gradients

    def _forward(self, net: nn.Module, x: Tensor, rows: Tensor | None) -> Tensor:
        # A net whose first layer works in place would change the caller's images, or refuse a leaf that wants
        # gradients. Its first batch is a copy, which tells (also of x.data, which leaves no trace in the version); the
        # others are copied only where it needs that. A net of random layers may do so now and then: always copied.
        works_in_place = self._works_in_place.get(id(net))
        given = x if works_in_place is False else x.clone()
        version = given._version
        logits = check_logits(net(given), len(x))
        if works_in_place is None:
            # In training it is always copied: to compare would wait for the GPU in every step.
            touched = self.ambient_autocast or self.is_stochastic or given._version != version
            self._works_in_place[id(net)] = touched or not torch.equal(given.detach(), x.detach())
        elif given is x and given._version != version:
            raise ValueError(_SOMETIMES_IN_PLACE.format(name=type(net).__name__))
        self._count(self.forwards, rows)
        bad = (~logits.detach().isfinite().all(1)).to(self._not_finite.dtype)
        if rows is None:
            self._not_finite += bad
        else:
            self._not_finite.index_add_(0, rows, bad)  # adds up where an example stands in several rows
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
    def finite(self) -> Tensor:
        """(B,) bool, whether every logit that an example ever got was finite."""
        return self._not_finite == 0

    @property
    def is_open(self) -> bool:
        """Whether `gradient_of_opening` has something to give."""
        return self._opening is not None

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
