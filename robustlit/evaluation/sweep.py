"""A sweep: every attack over its budgets, batch by batch, at the cost of a handful of attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, AttackResult, BudgetAttack, Transfer
from robustlit.attacks.victim import Victim
from robustlit.classifier import can_reject, check_labels, undefended
from robustlit.evaluation.constancy import warn_if_random
from robustlit.results.evaluation import Evaluation
from robustlit.results.table import COLUMNS, DISTANCES, KNOWLEDGE
from robustlit.threat import TOLERANCE, check_eps, check_images, check_norm, distance

Columns = dict[str, np.ndarray]
Report = Callable[[str, float], None]  # attack name, share of this batch's work done


@dataclass
class Sweep:
    """Attacks, the budgets to run them at, and what the attacker knows.

    Args:
        attacks: by name, or a list (named after their classes; a second PGD becomes "pgd-2").
        grid: norm -> budgets in pixel units for the budget attacks of that norm, beside each attack's own eps.
        knowledge: "adaptive" (through the defense's attack view; for a plain net, white box), "greybox" (crafted on
            the undefended net to the end of every attack, see `Transfer`, and judged on the defense) and "blackbox"
            (crafted on `substitute` likewise; attacks that need no gradients as they are). Attacks on a defense's own
            parts (`adaptive_only`) run as adaptive alone.
        seed: of the random draws, which depend on (seed, example) alone.
        substitute: a net that answers as the model does, distilled from it (`robustlit.training.distil`); only for
            "blackbox", and there only for attacks that need gradients.

    Raises:
        ValueError: no attack, a budget out of range, an unknown norm or knowledge, knowledge for which there is
            nothing to run; when it runs, no substitute where one is needed.
    """

    attacks: Mapping[str, Attack] | Sequence[Attack]
    grid: Mapping[str, Sequence[float]] = field(default_factory=dict)
    knowledge: Sequence[str] = ("adaptive",)
    seed: int = 0
    substitute: nn.Module | None = None

    def __post_init__(self) -> None:
        self.attacks = dict(self.attacks) if isinstance(self.attacks, Mapping) else _named(self.attacks)
        if not self.attacks:
            raise ValueError("a sweep needs at least one attack")
        self.grid = {
            check_norm(n): sorted({check_eps(e, n, name=f"grid.{n}") for e in eps}) for n, eps in self.grid.items()
        }
        if not self.knowledge:
            raise ValueError(f"knowledge must name at least one of {', '.join(KNOWLEDGE)}, got none")
        for known in self.knowledge:
            if known not in KNOWLEDGE:
                raise ValueError(f"knowledge must be among {', '.join(KNOWLEDGE)}, got {known!r}")
            if known not in (k for k, _ in self.jobs):
                raise ValueError(
                    f"{', '.join(self.named)} need to know the defense, so there is nothing to run with knowledge "
                    f"{known!r}; add an attack, or leave {known!r} out"
                )

    @property
    def jobs(self) -> list[tuple[str, str]]:
        """What is run: (knowledge, name of the attack), in order."""
        every = [(known, name) for known in self.knowledge for name in self.named]
        return [(known, name) for known, name in every if known == "adaptive" or not self.named[name].adaptive_only]

    @property
    def needs_substitute(self) -> bool:
        """Whether "blackbox" was asked for with an attack that needs gradients, and no substitute given."""
        needed = any(known == "blackbox" and self.named[name].needs_gradients for known, name in self.jobs)
        return needed and self.substitute is None

    def _informed(self, attack: Attack, known: str, model: nn.Module) -> Attack:
        """The attack as one who knows that much of `model` would run it."""
        if known == "greybox":
            return Transfer(attack, undefended(model))
        if known == "blackbox" and attack.needs_gradients:
            if self.substitute is None:
                raise ValueError(
                    f'knowledge "blackbox" needs a substitute for {attack.name}, which needs gradients that the model '
                    "does not give: pass substitute=robustlit.training.distil(model, SmallCNN(), images).net, or take "
                    "attacks that need none (Square)"
                )
            return Transfer(attack, self.substitute)
        return attack

    @property
    def named(self) -> dict[str, Attack]:
        """The attacks by name."""
        assert isinstance(self.attacks, dict)
        return self.attacks

    def budgets(self, attack: BudgetAttack) -> list[float]:
        """The budgets that an attack is run at, ascending: the grid of its norm and its own eps."""
        return sorted({*self.grid.get(attack.norm, ()), attack.eps})

    def attack_batch(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor, report: Report | None = None
    ) -> Columns:
        """Attacks one batch with everything.

        Args:
            model: the classifier, defended or not.
            x: images (B, C, H, W) in [0, 1].
            y: (B,) true classes.
            index: (B,) numbers of the examples, unique over the data set.
            report: called after each attack with its name and the share of the work done.

        Returns:
            The rows of `Evaluation`'s table as columns.

        Raises:
            ValueError: images outside [0, 1] or not finite, labels out of range, logits not (B, K), no gradient.
        """
        check_images(x)
        check_labels(y, len(x))
        with Victim(model, x) as victim:
            if victim.is_stochastic:
                victim.reseed(self.seed, index)
            logits = victim.logits(x)
            check_labels(y, len(x), logits.shape[1] - can_reject(model))
            warn_if_random(victim, x, logits)
            # For whoever classifies a clean image, a refusal is an error like any other.
            broken = replace(victim.criterion(y.long()), rejects=False).reached(logits)
        # Logits that are not finite classify nothing.
        clean = ~broken & torch.isfinite(logits).all(1)
        rows = torch.nonzero(clean).squeeze(1)
        start = _Level.untouched(logits.argmax(1), clean, x)
        parts: list[Columns] = []
        for done, (known, name) in enumerate(self.jobs):
            attack = self._informed(self.named[name], known, model)
            if isinstance(attack, BudgetAttack):
                levels = _climb(attack, model, x, y, index, start, self.budgets(attack), self.seed)
            else:
                levels = {float("nan"): start.copy()}
                for level in levels.values() if len(rows) else ():
                    result = attack.run(model, x[rows], y[rows], index=index[rows], seed=self.seed)
                    level.put(rows, _Level.of(result, x[rows]))
            for eps, level in levels.items():
                values = {"index": index, "label": y, "clean": clean, **level.columns()}
                constants = {"attack": name, "knowledge": known, "norm": attack.norm, "eps": eps}
                parts.append(
                    {c: v.cpu().numpy() for c, v in values.items()}
                    | {c: np.full(len(y), v) for c, v in constants.items()}
                )
            if report is not None:
                report(name, (done + 1) / len(self.jobs))
        return join_columns(parts)

    def meta(self) -> dict[str, object]:
        """What was run, for the file beside the table."""
        return {
            "attacks": {name: str(attack) for name, attack in self.named.items()},
            "grid": {n: list(e) for n, e in self.grid.items()},
            "knowledge": list(self.knowledge),
            "seed": self.seed,
            "substitute": None if self.substitute is None else type(self.substitute).__name__,
        }


def _named(attacks: Iterable[Attack]) -> dict[str, Attack]:
    named: dict[str, Attack] = {}
    for attack in attacks:
        name, number = attack.name, 2
        while name in named:
            name, number = f"{attack.name}-{number}", number + 1
        named[name] = attack
    return named


def join_columns(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, one after the other."""
    return {c: np.concatenate([p[c] for p in parts]) for c in COLUMNS}


def as_evaluation(parts: Sequence[Columns], meta: dict[str, object]) -> Evaluation:
    """An evaluation of the rows of all parts."""
    return Evaluation.from_columns(join_columns(parts), dict(meta))


@dataclass
class _Level:
    """What is known of each example at one budget: (B,) each."""

    success: Tensor
    prediction: Tensor
    distances: dict[str, Tensor]
    forwards: Tensor
    backwards: Tensor

    @classmethod
    def untouched(cls, prediction: Tensor, clean: Tensor, like: Tensor) -> _Level:
        """Before any attack: the misclassified are broken at distance 0, of the others nothing is known."""
        unknown = torch.where(clean, like.new_tensor(float("nan")), like.new_tensor(0.0))
        zeros = torch.zeros_like(prediction)
        prediction = prediction.masked_fill(clean, -1)
        return cls(~clean, prediction, {d: unknown.clone() for d in DISTANCES}, zeros, zeros.clone())

    @classmethod
    def of(cls, result: AttackResult, x: Tensor) -> _Level:
        distances = {d: distance(result.x_adv, x, d) for d in DISTANCES}
        return cls(result.success, result.prediction, distances, result.forwards, result.backwards)

    def columns(self) -> dict[str, Tensor]:
        return {
            "success": self.success,
            "prediction": self.prediction,
            **self.distances,
            "forwards": self.forwards,
            "backwards": self.backwards,
        }

    def copy(self) -> _Level:
        return self.select(torch.arange(len(self.success), device=self.success.device))

    def put(self, rows: Tensor, other: _Level) -> None:
        """Takes over what `other` found for `rows`, the passes added."""
        self.success[rows], self.prediction[rows] = other.success, other.prediction
        for d in DISTANCES:
            self.distances[d][rows] = other.distances[d]
        self.forwards[rows] += other.forwards
        self.backwards[rows] += other.backwards

    def inherit(self, other: _Level, norm: str, eps: float) -> None:
        """A witness that `other` found within `eps`, the budget here, is one here."""
        better = other.success & ~self.success & (other.distances[norm] <= eps + TOLERANCE)
        self.success = self.success | better
        self.prediction = torch.where(better, other.prediction, self.prediction)
        for d in DISTANCES:
            self.distances[d] = torch.where(better, other.distances[d], self.distances[d])

    def select(self, keep: Tensor) -> _Level:
        distances = {d: v[keep] for d, v in self.distances.items()}
        return _Level(self.success[keep], self.prediction[keep], distances, self.forwards[keep], self.backwards[keep])


def _climb(
    attack: BudgetAttack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    start: _Level,
    budgets: Sequence[float],
    seed: int,
) -> dict[float, _Level]:
    """Runs a budget attack so that each example's least breaking budget is known, without running every budget.

    Every clean example is attacked at the attack's own eps, the figure that is quoted. Those that it breaks are
    searched for their least budget below by sections, from the least that holds the witness already found, examples at
    different budgets sharing a batch; those that it does not break climb the budgets above, leaving when broken. An
    example that stands at a budget is taken to stand at the smaller ones between, as an attack that fails with more
    room rarely succeeds with less; what it is quoted at (its own eps) rests on no such assumption.
    """
    levels = [start.copy() for _ in budgets]
    own = budgets.index(attack.eps)
    radii = x.new_tensor(list(budgets))

    def run(rows: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Attacks `rows` (b,) at the budgets numbered `level` (b,).

        Returns:
            Who broke, (b,) bool, and the number of the least budget that holds the point found, (b,).
        """
        result = attack.run(model, x[rows], y[rows], index=index[rows], seed=seed, eps=radii[level])
        found = _Level.of(result, x[rows])
        for number in level.unique().tolist():
            mine = torch.nonzero(level == number).squeeze(1)
            levels[number].put(rows[mine], found.select(mine))
        holds = torch.searchsorted(radii + TOLERANCE, found.distances[attack.norm])
        return found.success, holds.minimum(level)

    rows = torch.nonzero(~start.success).squeeze(1)
    if len(rows):
        broke, holds = run(rows, torch.full_like(rows, own))
        # Below: the least broken level lies in (low, high], high broken already.
        search = rows[broke]
        low, high = torch.full_like(search, -1), holds[broke]
        while len(still := torch.nonzero(high - low > 1).squeeze(1)):
            # Nearer to where it broke than half way: an attempt that fails costs all its steps, a success only a few.
            middle = low[still] + 3 * (high[still] - low[still]) // 4
            won, holds = run(search[still], middle)
            high[still[won]], low[still[~won]] = holds[won], middle[~won]
        # Above.
        standing = rows[~broke]
        for number in range(own + 1, len(budgets)):
            if not len(standing):
                break
            standing = standing[~run(standing, torch.full_like(standing, number))[0]]
    for eps, level in zip(budgets, levels, strict=True):
        for other in levels:
            level.inherit(other, attack.norm, eps)
    return dict(zip(budgets, levels, strict=True))
