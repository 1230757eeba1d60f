"""Run a model under attack: modes, gradients, precision, random generators, pass counts.

Of a stochastic model a Victim averages gradients over draws (EOT) and judges by the votes of fresh draws, so that no
attack has to treat it differently.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from robustlit.attacks.calls import Call
from robustlit.attacks.draws import Draws
from robustlit.attacks.losses import Criterion, LogOdds
from robustlit.attacks.memory import is_out_of_memory
from robustlit.attacks.passes import PassCounter
from robustlit.attacks.surroundings import attack_precision, held_in_eval, kept_generators, seed_generators
from robustlit.classifier import attack_view, can_reject, draws_of, is_stochastic, names_class, watched

LossPerExample = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,), or (B, k) for a Jacobian
VOTES = 20  # fresh draws by which a stochastic model is judged
_HALF = 0.48  # 10 votes of 20; a thousandth of each vote goes by probability, so not quite 0.5
_SAFE = 0.63  # 13 votes of 20: a search that stopped at a bare half would lose every other recount
_VOTE_BY_PROBABILITY = 1e-3  # small enough to decide between equal votes only
_NO_GRADIENT = (
    "{name} gives no gradient with respect to its input{why}, so a gradient-based attack cannot see it; a model "
    "without gradients is not thereby robust. Where a part of it hides the gradient (NumPy, detach, rounding), put "
    "robustlit.attacks.BPDA(part) in its place, or attack BPDA(model, backward=NET) with a differentiable NET of as "
    "many classes; a defense returns such a model from its attack_view(). Checkpointing needs use_reentrant=False. "
    "Square needs no gradients"
)


class NoGradientError(ValueError):
    """A model that answers, but cannot be differentiated with respect to its input."""


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
        training: Work as a training step does: keep the precision of a surrounding autocast region if it is bfloat16,
            do not restore the global random generators, and count no passes, so that a GPU has less to launch.
        keep_generators: Restore the global random generators on leaving; a stochastic model draws from them.
        draws: Number of draws that a gradient is averaged over; None takes the model's own (1 if deterministic).
        watch: Raise a ValueError if the first forward reaches a defense that the model does not declare.
    """

    def __init__(self, model: nn.Module, like: Tensor, *, eval_mode: bool = True, training: bool = False,
                 keep_generators: bool = True, draws: int | None = None, watch: bool = False) -> None:  # fmt: skip
        self.model = model
        self.view = model  # the attack view, once entered
        self.draws = draws_of(model) if draws is None else draws
        self.batch, self.device = len(like), like.device
        self.eval_mode, self.training, self.keep_generators = eval_mode, training, keep_generators and not training
        self.watch = watch
        self._opening: tuple[Tensor, Tensor] | None = None
        self._calls: dict[int, Call] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Victim:
        with ExitStack() as stack:  # closed here only if entering fails half way
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            # Created here, as ordinary tensors: inference tensors cannot be updated outside inference mode.
            if not self.training:
                self.passes = PassCounter(self.batch, self.device)
            stack.enter_context(attack_precision(self.device.type, keep=self.training))
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
    def is_open(self) -> bool:
        """Whether `gradient_from_graph` can be called."""
        return self._opening is not None

    @property
    def is_stochastic(self) -> bool:
        """Whether two forwards of one input may differ."""
        return is_stochastic(self.model)

    @property
    def view_is_model(self) -> bool:
        """Whether the attack view is the model itself and deterministic, so that its logits may judge."""
        return self.view is self.model and not self.is_stochastic

    def reseed(self, seed: int, index: Tensor) -> None:
        """Seed the generators of a stochastic model by the seed and the numbers of the batch's examples (B,)."""
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

    def attacked_logits(self, x: Tensor, judged: Tensor) -> Tensor:
        """Return the logits (B, K) that losses are taken of: one forward of the attack view, else those judged."""
        with torch.no_grad():
            return judged if self.view is self.model else self._forward(self.view, x, None)

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the logits (b, K) by which the real model judges images (b, ...), without gradients.

        Of a stochastic model these are log shares of the votes of `VOTES` fresh draws, at as many forwards. A draw that
        names no class (`names_class`) votes for none; NaN where no class has as many votes as there are such draws.
        """
        return self.judge(x, rows)[0]

    def judge(self, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `logits` returns, and the logits (b, K) that tell how near to success an attempt is.

        Of a deterministic model these are the same. Of a stochastic one, votes judge, but log shares of votes are no
        margins: the second are the mean logits of the same draws, so that a deterministic model that is declared
        stochastic is searched in the same way as without.
        """
        if not self.is_stochastic:
            logits = self.forward_once(x, rows)
            return logits, logits
        with torch.no_grad():
            votes = mean = named = torch.zeros((), device=x.device)
            for _ in range(VOTES):
                logits = self._forward(self.model, x, rows)
                vote = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
                vote = vote.add_(logits.softmax(1).nan_to_num(), alpha=_VOTE_BY_PROBABILITY)
                names = names_class(logits).unsqueeze(1)
                votes, named = votes + torch.where(names, vote, 0.0), named + names.to(logits.dtype)
                # A running mean, so that equal draws have exactly that mean; an infinite one stays.
                moves = names & (logits != mean) & mean.isfinite()
                mean = torch.where(moves, mean + (logits - mean) / named.clamp_min(1), mean)
            shares = votes.div_(VOTES * (1 + _VOTE_BY_PROBABILITY))
            unanswered = 1 - shares.sum(1) > shares.amax(1)
            mean = mean.masked_fill(named == 0, float("nan"))
            return shares.clamp_min_(1e-12).log_().masked_fill_(unanswered.unsqueeze(1), float("nan")), mean

    def open(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of a model that is its own view, and keep their graph for `gradient_from_graph`."""
        leaf = x.detach().requires_grad_(True)
        logits = self._differentiable(leaf, None)
        self._opening = leaf, logits
        return logits.detach()

    def gradient_from_graph(self, loss: LossPerExample, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
            NoGradientError: The model gives no gradient.
        """

        def one_draw() -> tuple[Tensor, Tensor, Tensor]:
            leaf = x.detach().requires_grad_(True)
            logits = self._differentiable(leaf, rows)
            losses = loss(logits)
            gradient = self._backward(losses.sum(), leaf, rows)
            return logits.detach(), losses.detach(), gradient

        return self._mean_over_draws(one_draw)

    def direction(self, x: Tensor, loss: LossPerExample) -> Tensor:
        """Return the gradient (B, ...) that `gradient` returns; of `LogOdds` by its slope, without its value."""
        if self.draws > 1 or not isinstance(loss, LogOdds):
            return self.gradient(x, loss)[2]
        leaf = x.detach().requires_grad_(True)
        logits = self._differentiable(leaf, None)
        return self._backward(logits, leaf, None, slope=loss.slope(logits.detach()))

    def jacobian(self, x: Tensor, losses: LossPerExample, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Differentiate several losses, logits (b, K) -> (b, k), at one forward and k backwards; see `gradient`.

        Returns:
            The view's logits (b, K), the losses (b, k), and their gradients (b, k, ...).
        """

        def one_draw() -> tuple[Tensor, Tensor, Tensor]:
            leaf = x.detach().requires_grad_(True)
            logits = self._differentiable(leaf, rows)
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

    def _differentiable(self, leaf: Tensor, rows: Tensor | None) -> Tensor:
        """Return the attack view's logits (b, K) of images that require gradients."""
        try:
            return self._forward(self.view, leaf, rows)
        except Exception as error:  # libraries raise many kinds
            if isinstance(error, ValueError) or is_out_of_memory(error):
                raise
            try:
                with torch.no_grad():
                    self.view(leaf.detach().clone())
            except Exception:
                raise error from None  # it does not answer either
            raise self._no_gradient(error) from error

    def _forward(self, net: nn.Module, x: Tensor, rows: Tensor | None) -> Tensor:
        if (call := self._calls.get(id(net))) is None:
            # A stochastic net may work in place now and then; in training, comparing would wait for the GPU every step.
            copy = self.training or self.is_stochastic
            first = partial(watched, net, self.model) if self.watch else nullcontext
            call = Call(net, always_copy=copy, keep_dtype=self.training, first=first)
            self._calls[id(net)] = call
        logits = call(x)
        if not self.training:
            self.passes.forward(logits, rows)
        return logits

    def _backward(self, loss: Tensor, leaf: Tensor, rows: Tensor | None, retain_graph: bool = False,
                  slope: Tensor | None = None) -> Tensor:  # fmt: skip
        gradient = None
        try:
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, leaf, slope, retain_graph=retain_graph, allow_unused=True)
        except RuntimeError as error:  # an operation without a derivative, checkpointing of the old kind
            if is_out_of_memory(error):
                raise
            raise self._no_gradient(error) from error
        if gradient is None:
            raise self._no_gradient()
        if not self.training:
            self.passes.backward(rows)
        # A pixel whose slope is not finite (a square root at 0) must not spread NaN to the other pixels and iterates.
        return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # a copy, the caller's to write into

    def _no_gradient(self, error: Exception | None = None) -> NoGradientError:
        why = "" if error is None else f" ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        return NoGradientError(_NO_GRADIENT.format(name=type(self.view).__name__, why=why))


def check_differentiable(model: nn.Module, x: Tensor) -> None:
    """Raise a NoGradientError unless the model gives a gradient at images (B, ...) in [0, 1]; it may be zero."""
    with Victim(model, x, draws=1) as victim:
        victim.gradient(x.clone(), lambda logits: logits.sum(1))  # `x` may be an inference tensor
