"""A sweep: every attack at its budgets, batch by batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from robustlit.attacks import Attack, BudgetAttack, Transfer
from robustlit.attacks.memory import Pieces
from robustlit.attacks.progress import report_to, track
from robustlit.attacks.victim import Victim, check_differentiable
from robustlit.certify import Certificate
from robustlit.certify.certificate import Certified
from robustlit.checks import as_names, check_choice, check_seed, distinct_budgets
from robustlit.classifier import can_reject, check_labels, check_not_hidden, predicted, undefended
from robustlit.evaluation.budget_search import BudgetSearch, repetitions
from robustlit.evaluation.columns import Columns, add_seconds, image_digests, joined
from robustlit.evaluation.constancy import warn_if_inconsistent
from robustlit.evaluation.outcome import Batch, Outcome
from robustlit.results.certificates import CERTIFIED
from robustlit.results.table import DISTANCES, IMAGE, KNOWLEDGE
from robustlit.threat import check_grid, check_images

Named = TypeVar("Named", Attack, Certificate)
_NO_SUBSTITUTE = (
    'knowledge "blackbox" needs a substitute for {name}, which needs gradients that the model does not give: pass '
    "substitute=robustlit.training.distil(model, SmallCNN(), images).net, or take attacks that need none (Square)"
)
Report = Callable[[str, float], None]  # name of the attack, share of this batch's work done
Keep = Callable[[str, dict[str, Tensor]], None]  # name of an attack at a budget; x_adv and the columns that go with it


@dataclass
class Sweep:
    """Attacks, the budgets to run them at, and what the attacker knows.

    Args:
        attacks: Attacks by name, or a list (named after their classes; a second PGD becomes "pgd-2").
        grid: Norm -> budgets in pixel units for the budget attacks of that norm, beside each attack's own eps. Those
            that differ by at most 1e-6, or 1e-6 of it, are one.
        knowledge: Any of "adaptive" (through the defense's attack view; for a plain net, white box), "greybox" (crafted
            on the undefended net to the end of every attack, see `Transfer`, and judged on the defense) and "blackbox"
            (crafted on `substitute` in the same way; attacks without gradients run as they are). Attacks on the parts
            of a defense (`adaptive_only`) run only as adaptive.
        seed: Seed of the random draws, which depend on (seed, example) alone.
        substitute: A net distilled from the model (`robustlit.training.distil`), needed for "blackbox" with attacks
            that need gradients.
        certificates: Certificates by name, or a list, as `attacks`. Each searches the largest budget at which an
            example is proven robust; it is exact at its own eps and at the budgets of its norm in `grid`.
        own_eps: Names of attacks that run at their own eps alone, whatever is in `grid`.

    Raises:
        TypeError: A grid that is no mapping.
        ValueError: No attack, a name in `own_eps` that none has, a budget out of range, an unknown norm or knowledge,
            a seed that is no whole number, or knowledge that none of the attacks can run with. When it runs: a
            substitute is needed and missing.
    """

    attacks: Mapping[str, Attack] | Sequence[Attack]
    grid: Mapping[str, Sequence[float]] = field(default_factory=dict)
    knowledge: str | Sequence[str] = ("adaptive",)
    seed: int = 0
    substitute: nn.Module | None = None
    certificates: Mapping[str, Certificate] | Sequence[Certificate] = ()
    own_eps: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._pieces = Pieces()
        self._certifiable: nn.Module | None = None  # the model for which every certificate ran on one image
        self.attacks = dict(self.attacks) if isinstance(self.attacks, Mapping) else _named(self.attacks)
        given = self.certificates
        self.certificates = dict(given) if isinstance(given, Mapping) else _named(given)
        if not self.attacks:
            raise ValueError("a sweep needs at least one attack")
        self.own_eps, self.knowledge = as_names(self.own_eps), as_names(self.knowledge)
        for name in self.own_eps:
            check_choice(name, "own_eps", [*self.named])
        self.grid = check_grid(self.grid)
        check_seed(self.seed)
        if not self.knowledge:
            raise ValueError(f"knowledge must name at least one of {', '.join(KNOWLEDGE)}, got none")
        for known in self.knowledge:
            check_choice(known, "knowledge", KNOWLEDGE)
            if known not in (k for k, _ in self.jobs):
                names, way_out = ", ".join(self.named), f"add an attack, or leave {known!r} out"
                nothing = f"so there is nothing to run with knowledge {known!r}; {way_out}"
                raise ValueError(f"{names} need to know the defense, {nothing}")

    @property
    def named(self) -> dict[str, Attack]:
        """The attacks by name."""
        assert isinstance(self.attacks, dict)
        return self.attacks

    @property
    def proofs(self) -> dict[str, Certificate]:
        """The certificates by name."""
        assert isinstance(self.certificates, dict)
        return self.certificates

    @property
    def jobs(self) -> list[tuple[str, str]]:
        """What is run: pairs (knowledge, name of the attack), in order."""
        every = [(known, name) for known in self.knowledge for name in self.named]
        return [(known, name) for known, name in every if known == "adaptive" or not self.named[name].adaptive_only]

    @property
    def needs_substitute(self) -> bool:
        """Whether "blackbox" is asked for with an attack that needs gradients, and there is no substitute."""
        needed = any(known == "blackbox" and self.named[name].needs_gradients for known, name in self.jobs)
        return needed and self.substitute is None

    @property
    def _needs_gradient(self) -> bool:
        own = [self.named[name] for known, name in self.jobs if known == "adaptive"]
        return any(a.needs_gradients and not a.adaptive_only and not a.goes_on_blind for a in own)

    def attack_batch(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor, report: Report | None = None,
        keep: Keep | None = None,
    ) -> Columns:  # fmt: skip
        """Run every attack on one batch and return the rows of `Evaluation`'s table as columns.

        Args:
            model, x: The classifier, defended or not, and images (B, C, H, W) in [0, 1].
            y, index: (B,) true classes, and numbers of the examples, unique over the data set.
            report: Called at each step of each attack with its name and the share of the work done.
            keep: Called with the adversarial examples of each attack and budget, see `Adversarials`.

        Raises:
            ValueError: Images outside [0, 1] or not finite, labels out of range, logits not (B, K), no gradient, or a
                model that a certificate cannot take.
            OutOfMemoryError: Memory does not suffice for a single image; for a batch, its halves are attacked.
        """
        check_images(x)
        check_labels(y, len(x))
        check_not_hidden(model)
        logits, broken = self._answers(model, x, y, index)
        if self._needs_gradient:  # here: an error that comes later would lose what other attacks have found
            check_differentiable(model, x[:1])
        if self._certifiable is not model:  # likewise
            for certificate in self.proofs.values():
                certificate.run(model, x[:1], y[:1])
            self._certifiable = model
        clean = ~broken
        start = Outcome.unattacked(predicted(logits), clean, x, keep=keep is not None)
        batch = Batch(model, x, y, index, self.seed, self._pieces, keep is not None)
        parts: list[Columns] = []
        images, jobs = image_digests(x), [*self.jobs, *((CERTIFIED, name) for name in self.proofs)]
        name, tell = jobs[0][1], report or (lambda name, share: None)
        with report_to(lambda share: tell(name, share)):  # the name of the job that runs
            for known, name in track(jobs, [self._expected_passes(*job) for job in jobs]):
                started = time.monotonic()
                if known == CERTIFIED:
                    rows = [self._certified(name, batch, clean)]
                else:
                    rows = self._attacked(known, name, batch, start, keep)
                add_seconds(rows, time.monotonic() - started)
                parts += [columns | {IMAGE: images} for columns in rows]
        tell(name, 1.0)
        return joined(parts)

    def _expected_passes(self, known: str, name: str) -> float:
        """Return the passes of a job for an image that it does not break, roughly."""
        if known == CERTIFIED:
            return self.proofs[name].expected_passes
        attack, budgets = self.named[name], self.budgets_of(name)
        if not isinstance(attack, BudgetAttack):
            return attack.expected_passes
        return attack.expected_passes * sum(repetitions(budgets, attack.eps))

    def _attacked(self, known: str, name: str, batch: Batch, start: Outcome, keep: Keep | None) -> list[Columns]:
        """Return the rows of an attack, for each of its budgets."""
        attack, rows = self.informed(self.named[name], known, batch.model), []
        for eps, outcome in self._outcomes(name, attack, batch, start).items():
            values = {"index": batch.index, "label": batch.y, "clean": ~start.success, **outcome.columns}
            constants = {"attack": name, "knowledge": known, "norm": attack.norm, "eps": eps}
            columns = {c: v.cpu().numpy() for c, v in values.items()}
            rows.append(columns | {c: np.full(len(batch.y), v) for c, v in constants.items()})
            if keep is not None and outcome.x_adv is not None:
                shown = {c: values[c] for c in ("index", "label", "clean", "success", "prediction")}
                keep(run_name(known, name, attack.norm, eps), {"x_adv": outcome.x_adv, **shown})
        return rows

    def _certified(self, name: str, batch: Batch, clean: Tensor) -> Columns:
        """Return the rows of a certificate, in the columns of attacks: `eps` is the proven radius."""
        certificate, rows = self.proofs[name], torch.nonzero(clean).squeeze(1)
        budgets = self.grid.get(certificate.norm, ())

        def work(here: Tensor) -> Certified:
            return certificate.run(batch.model, batch.x[rows[here]], batch.y[rows[here]], budgets=budgets)

        places = torch.arange(len(rows), device=rows.device)
        found = batch.pieces.done(work, places, name) if len(rows) else []
        columns = {"index": batch.index, "label": batch.y, "clean": clean, "success": torch.zeros_like(clean)}
        columns |= {"prediction": torch.full_like(batch.y, -1)}
        for column, values in (("eps", "radius"), ("forwards", "forwards"), ("backwards", "backwards")):
            kind = torch.float64 if column == "eps" else torch.int64
            columns[column] = torch.zeros(len(clean), dtype=kind, device=clean.device)
            if found:
                columns[column][rows] = torch.cat([getattr(each, values) for each in found]).to(kind)
        unknown = {distance: np.full(len(clean), np.nan) for distance in DISTANCES}
        constants = {"attack": name, "knowledge": CERTIFIED, "norm": certificate.norm}
        texts = {c: np.full(len(clean), v) for c, v in constants.items()}
        return {c: v.cpu().numpy() for c, v in columns.items()} | unknown | texts

    def _answers(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K) on the clean images and whether these are misclassified (B,)."""

        def answers(rows: Tensor) -> tuple[Tensor, Tensor]:
            images, labels = x[rows], y[rows]
            with Victim(model, images, watch=True) as victim:
                if victim.is_stochastic:
                    victim.reseed(self.seed, index[rows])
                logits = victim.logits(images)
                check_labels(labels, len(rows), logits.shape[1] - can_reject(model))
                warn_if_inconsistent(victim, images, logits)
                # A refusal to classify a clean image is an error like any other.
                return logits, replace(victim.criterion(labels.long()), rejects=False).reached(logits)

        found = self._pieces.done(answers, torch.arange(len(x), device=x.device), "the clean images")
        logits, broken = (torch.cat(parts) for parts in zip(*found, strict=True))
        return logits, broken

    def informed(self, attack: Attack, known: str, model: nn.Module) -> Attack:
        """Return the attack as an attacker with this knowledge of `model` would run it."""
        if known == "greybox":
            return Transfer(attack, undefended(model))
        if known == "blackbox" and attack.needs_gradients:
            if self.substitute is None:
                raise ValueError(_NO_SUBSTITUTE.format(name=attack.name))
            return Transfer(attack, self.substitute)
        return attack

    def _outcomes(self, name: str, attack: Attack, batch: Batch, start: Outcome) -> dict[float, Outcome]:
        """Return the outcome at each budget of an attack; a minimal attack has one, at NaN."""
        if isinstance(attack, BudgetAttack):
            return BudgetSearch(batch, attack, self.budgets_of(name), start).run()
        outcome = start.copy()
        rows = torch.nonzero(~start.success).squeeze(1)
        if len(rows):
            outcome.put(rows, batch.attacked(attack, rows))
        return {float("nan"): outcome}

    def budgets_of(self, name: str) -> list[float]:
        """Return the budgets that an attack runs at; a minimal attack has one, NaN."""
        attack = self.named[name]
        if not isinstance(attack, BudgetAttack):
            return [float("nan")]
        grid = () if name in self.own_eps else self.grid.get(attack.norm, ())
        return distinct_budgets([attack.eps, *grid])

    @property
    def run_names(self) -> list[str]:
        """The names of all attacks at all budgets, see `run_name`."""
        return [
            run_name(known, name, self.named[name].norm, eps)
            for known, name in self.jobs
            for eps in self.budgets_of(name)
        ]

    def meta(self) -> dict[str, object]:
        """Return what was run, for the file beside the table."""
        return {
            "attacks": {name: str(attack) for name, attack in self.named.items()},
            "grid": {n: list(e) for n, e in self.grid.items()},
            "knowledge": list(self.knowledge),
            "seed": self.seed,
            **({"certificates": {n: str(c) for n, c in self.proofs.items()}} if self.proofs else {}),
            "substitute": None if self.substitute is None else type(self.substitute).__name__,
        }


def run_name(known: str, name: str, norm: str, eps: float) -> str:
    """Return the name of an attack at a budget, such as "pgd_linf_0.3" or "pgd-greybox_linf_0.3"."""
    label = name if known == "adaptive" else f"{name}-{known}"
    return f"{label}_{norm}" if math.isnan(eps) else f"{label}_{norm}_{eps:.7g}"


def _named(attacks: Iterable[Named]) -> dict[str, Named]:
    named: dict[str, Named] = {}
    for attack in attacks:
        name, number = attack.name, 2
        while name in named:
            name, number = f"{attack.name}-{number}", number + 1
        named[name] = attack
    return named
