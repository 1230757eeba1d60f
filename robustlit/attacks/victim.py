"""Run a model under attack: modes, gradients, precision, random generators, pass counts.

Of a stochastic model a Victim averages gradients over draws (EOT) and judges by the votes of fresh draws, so that no
attack has to treat it differently.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from operator import attrgetter

import torch
from torch import Tensor, nn

from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion
from robustlit.attacks.passes import PassCounter
from robustlit.attacks.surroundings import attack_precision, held_in_eval, kept_generators, seed_generators
from robustlit.classifier import attack_view, can_reject, check_logits, draws_of, is_stochastic, names_class

LossPerExample = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,), or (B, k) for a Jacobian
VOTES = 20  # fresh draws by which a stochastic model is judged
_HALF = 0.48  # 10 votes of 20; a thousandth of each vote goes by probability, so not quite 0.5
_SAFE = 0.63  # 13 votes of 20: a search that stopped at a bare half would lose every other recount
_VOTE_BY_PROBABILITY = 1e-3  # small enough to decide between equal votes only
_writes = attrgetter("_version")  # how often a tensor was written to; PyTorch has no public name for it
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
    """A model under attack; a context manager.

    Inside, every submodule is in eval mode, gradients are on (also under `no_grad` and `inference_mode`) and autocast
    is off; all of it, and the global random generators, are restored on leaving. Gradients are taken with respect to
    the input only, so the parameters' `.grad` and `requires_grad` are not touched. Passes are counted per example.

    In every method `rows` (b,) gives the examples of the batch that the images (b, ...) belong to; None means all of
    them, in order.

    Args:
        model: The classifier, defended or not. Success is judged on its own forward.
        like: The images (B, ...), for the batch size and the device.
        eval_mode: Hold every submodule in eval mode. False keeps the modes (an option of adversarial training).
        ambient_autocast: Keep the precision of the surrounding autocast region if it is bfloat16, as in training.
        keep_generators: Restore the global random generators on leaving; a stochastic model draws from them.
        draws: Number of draws that a gradient is averaged over; None takes the model's own (1 if deterministic).
    """

    def __init__(self, model: nn.Module, like: Tensor, *, eval_mode: bool = True, ambient_autocast: bool = False,
                 keep_generators: bool = True, draws: int | None = None) -> None:  # fmt: skip
        self.model = model
        self.view = model  # the attack view, once entered
        self.draws = draws_of(model) if draws is None else draws
        self.batch, self.device = len(like), like.device
        self.eval_mode, self.ambient_autocast, self.keep_generators = eval_mode, ambient_autocast, keep_generators
        self._opening: tuple[Tensor, Tensor] | None = None
        self._works_in_place: dict[int, bool] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Victim:
        with ExitStack() as stack:  # closed here only if entering fails half way
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            # Created here, as ordinary tensors: inference tensors cannot be updated outside inference mode.
            self.passes = PassCounter(self.batch, self.device)
            self.forwards, self.backwards = self.passes.forwards, self.passes.backwards  # (B,) int64, live
            stack.enter_context(attack_precision(self.device.type, keep=self.ambient_autocast))
            if self.keep_generators:
                # `random` and NumPy are what random resizing and the like often draw from.
                stack.enter_context(kept_generators(self.device, python=self.is_stochastic))
            # Only here: a view that is built now may draw numbers, and in inference mode would have no gradients.
            self.view = attack_view(self.model)
            if self.eval_mode:
                stack.enter_context(held_in_eval(self.model, self.view))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def finite(self) -> Tensor:
        """(B,) bool, whether all logits of an example were finite."""
        return self.passes.finite

    @property
    def is_open(self) -> bool:
        """Whether `gradient_of_opening` can be called."""
        return self._opening is not None

    @property
    def is_stochastic(self) -> bool:
        """Whether two forwards of one input may differ."""
        return is_stochastic(self.model)

    @property
    def sees_itself(self) -> bool:
        """Whether the attack view is the model itself and deterministic, so that its logits may judge."""
        return self.view is self.model and not self.is_stochastic

    def reseed(self, seed: int, index: Tensor) -> None:
        """Seed the generators that a stochastic model may draw from, so that its noise is the same on every run.

        The noise is a function of the seed and the numbers of the examples (B,), so each batch has its own.
        """
        key = Draws(seed, index).uniform(torch.zeros(len(index), 2, dtype=torch.float64, device=index.device))
        seed_generators(int((key * 2**24).sum()) % 2**32, self.device)

    def criterion(self, label: Tensor, target: Tensor | None = None, *, safely: bool = False) -> Criterion:
        """Return the criterion for labels and targets (B,); for a stochastic model, at least half of the votes.

        Votes for any class but the label count together, however errors spread. `safely` asks for 13 votes of 20.
        """
        share = 0.0 if not self.is_stochastic else _SAFE if safely else _HALF
        return Criterion(label, target, share, can_reject(self.model))

    def forward_once(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the logits (B, K) of one forward of the real model without gradients, stochastic or not."""
        with torch.no_grad():
            return self._forward(self.model, x, rows)

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the logits (b, K) by which the real model judges images (b, ...), without gradients.

        Of a stochastic model these are log shares of the votes of `VOTES` fresh draws, at as many forwards. A draw that
        names no class (`names_class`) votes for none; NaN where no class has as many votes as there are such draws.
        """
        if not self.is_stochastic:
            return self.forward_once(x, rows)
        with torch.no_grad():
            votes: Tensor | None = None
            for _ in range(VOTES):
                logits = self._forward(self.model, x, rows)
                vote = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
                vote = vote.add_(logits.softmax(1).nan_to_num(), alpha=_VOTE_BY_PROBABILITY)
                vote = torch.where(names_class(logits).unsqueeze(1), vote, 0.0)
                votes = vote if votes is None else votes + vote
            assert votes is not None
            shares = votes.div_(VOTES * (1 + _VOTE_BY_PROBABILITY))
            unanswered = 1 - shares.sum(1) > shares.amax(1)
            return shares.clamp_min_(1e-12).log_().masked_fill_(unanswered.unsqueeze(1), float("nan"))

    def open(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of the whole batch and keep their graph for `gradient_of_opening`: saves a forward.

        Only for a victim that `sees_itself`.
        """
        leaf = x.detach().requires_grad_(True)
        logits = self._forward(self.view, leaf, None)
        self._opening = leaf, logits
        return logits.detach()

    def gradient_of_opening(self, loss: LossPerExample, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `gradient` returns for the examples `rows` (b,) of the opened batch, at one backward. Once.

        The backward runs over the whole batch but is counted for `rows` only: the others are not under attack.
        """
        assert self._opening is not None
        (leaf, every), self._opening = self._opening, None
        logits = every[rows]
        losses = loss(logits)
        gradient = self._backward(losses.sum(), leaf, rows)[rows]
        return logits.detach(), losses.detach(), gradient

    def gradient(self, x: Tensor, loss: LossPerExample, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Run one forward and one backward through the attack view; of a stochastic model, average over its draws.

        Args:
            x: Images (b, ...).
            loss: Logits (b, K) -> (b,), summed over the batch: a gradient does not depend on the batch size.
            rows: (b,) examples of the batch.

        Returns:
            The view's logits (b, K), the losses (b,), and the gradient of each loss with respect to its image (b, ...).

        Raises:
            ValueError: The model gives no gradient.
        """

        def one_draw() -> tuple[Tensor, Tensor, Tensor]:
            leaf = x.detach().requires_grad_(True)
            logits = self._forward(self.view, leaf, rows)
            losses = loss(logits)
            gradient = self._backward(losses.sum(), leaf, rows)
            return logits.detach(), losses.detach(), gradient

        return self._mean_over_draws(one_draw)

    def jacobian(self, x: Tensor, losses: LossPerExample, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Differentiate several losses, logits (b, K) -> (b, k), at one forward and k backwards; see `gradient`.

        Returns:
            The view's logits (b, K), the losses (b, k), and their gradients (b, k, ...).
        """

        def one_draw() -> tuple[Tensor, Tensor, Tensor]:
            leaf = x.detach().requires_grad_(True)
            logits = self._forward(self.view, leaf, rows)
            values = losses(logits)  # (b, k)
            heads = values.sum(0).unbind()
            # Written one by one: stacking a thousand classes' gradients would hold each of them twice.
            gradients = x.new_empty(len(x), len(heads), *x.shape[1:])
            for k, head in enumerate(heads):
                gradients[:, k] = self._backward(head, leaf, rows, retain_graph=k < len(heads) - 1)
            return logits.detach(), values.detach(), gradients

        return self._mean_over_draws(one_draw)

    def _mean_over_draws(self, one_draw: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        logits, values, gradients = one_draw()
        for _ in range(self.draws - 1):
            again = one_draw()
            logits, values, gradients = logits + again[0], values + again[1], gradients.add_(again[2])
        if self.draws > 1:
            logits, values, gradients = logits / self.draws, values / self.draws, gradients.div_(self.draws)
        return logits, values, gradients

    def _forward(self, net: nn.Module, x: Tensor, rows: Tensor | None) -> Tensor:
        # A net that works in place would change the images under attack, or fail on a leaf that requires gradients. Its
        # first batch is a copy, and whether that changed decides if later batches are copied (writing to x.data leaves
        # the version, so values are compared too). A stochastic net may work in place now and then: always copied.
        works_in_place = self._works_in_place.get(id(net))
        given = x if works_in_place is False else x.clone()
        before = _writes(given)
        logits = check_logits(net(given), len(x))
        if works_in_place is None:
            # In training always copied: comparing would wait for the GPU in every step.
            touched = self.ambient_autocast or self.is_stochastic or _writes(given) != before
            self._works_in_place[id(net)] = touched or not torch.equal(given.detach(), x.detach())
        elif given is x and _writes(given) != before:
            raise ValueError(_SOMETIMES_IN_PLACE.format(name=type(net).__name__))
        self.passes.forward(logits, rows)
        return logits

    def _backward(self, loss: Tensor, leaf: Tensor, rows: Tensor | None, retain_graph: bool = False) -> Tensor:
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=retain_graph, allow_unused=True)
        if gradient is None:
            raise ValueError(_NO_GRADIENT.format(name=type(self.view).__name__))
        self.passes.backward(rows)
        # A pixel whose slope is not finite (a square root at 0) must not spread NaN to the other pixels and iterates.
        return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # a copy, the caller's to write into
