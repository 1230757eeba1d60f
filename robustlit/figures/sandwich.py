"""What is proven and what was broken, in one figure: true accuracy lies between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from robustlit.checks import budget_text, rounded_up
from robustlit.figures.curves import counts
from robustlit.figures.extent import attacked_to
from robustlit.figures.lines import Source, as_notes, curve_line
from robustlit.figures.panel import COLOURS, NORMS, Line, Look, Panel
from robustlit.results.certificates import probability_note
from robustlit.results.evaluation import Evaluation
from robustlit.results.stored_verdict import notes_beside
from robustlit.results.text import attacked_budgets
from robustlit.results.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 4  # budgets, the largest, at which the gap is named


def has_sandwich(evaluation: Evaluation, distance: str) -> bool:
    """Return whether something was certified in a distance in which an adaptive attack ran."""
    proven = evaluation.certificates
    ran = {evaluation.norm_of(attack) for attack, known in evaluation.runs if known == "adaptive"}
    return proven is not None and distance in proven.norms and distance in ran


def sandwich_figure(
    evaluation: Evaluation, distance: str = "linf", *, name: str = "", verdict: Verdict | None = None
) -> Figure:
    """Draw accuracy under attack above, certified accuracy below, and shade the gap; notes name its size at budgets.

    Args:
        evaluation: With a certificate and an adaptive attack in the norm `distance`.
        name, verdict: As in `curves_figure`.
    """
    proven = evaluation.certificates
    assert proven is not None
    caveats: list[str] = []
    with as_notes(caveats):
        attacked = Source("attacked (worst case)", evaluation, None, "adaptive", Look(COLOURS[1], "-"))
        above = curve_line(attacked, distance)
    end = attacked_to(evaluation, None, distance=distance)
    below = proven.curve(norm=distance).to_numpy()
    if np.isfinite(end):
        below = below[below[:, 0] <= end]
    # A radius still counts at its own distance: the step falls behind it.
    steps = np.column_stack([below[:, 0], np.vstack([below[1:, 1:], below[-1:, 1:]])])
    line = Line("certified", steps, Look(COLOURS[0], "-"))
    budgets = attacked_budgets(evaluation, distance)[-_FEW:]
    gaps = [f"{_gap(evaluation, distance, eps):.1f} points at {budget_text(eps)}" for eps in budgets]
    notes = [*notes_beside(evaluation, verdict), "The true accuracy lies in the shaded gap."]
    notes += [f"The gap is {', '.join(gaps)} ({NORMS[distance]})."] if gaps else []
    names = [each for each in proven.names if proven.norm_of(each) == distance]
    settings = evaluation.meta.get("certificates") or {}
    certified = f"{', '.join(names)}{probability_note(settings.values())}"
    notes.append(f"Certified by {certified}; attacked by {', '.join(evaluation.named(None, 'adaptive'))}.")
    notes += caveats
    subject = f"{name}: certified and attacked accuracy" if name else "Certified and attacked accuracy"
    figure = Panel(distance, subject, counts(evaluation), "curve", notes, verdict).figure([above, line])
    grid = np.linspace(0, above.values[-1, 0], 400)
    reach = np.sort(evaluation.reach(None, distance=distance))
    radii = np.sort(proven.radii(norm=distance).to_numpy())
    top = 1 - np.searchsorted(reach, rounded_up(grid, distance), side="right") / len(reach)
    bottom = 1 - np.searchsorted(radii, grid) / len(radii)
    figure.axes[0].fill_between(grid, 100 * bottom, 100 * top, color="#999999", alpha=0.25, linewidth=0)
    return figure


def _gap(evaluation: Evaluation, norm: str, eps: float) -> float:
    """Return attacked minus certified accuracy in percentage points."""
    assert evaluation.certificates is not None
    proven = evaluation.certificates.accuracy(norm=norm, eps=eps)
    return 100 * (float(evaluation.worst_case(norm=norm, eps=eps)) - float(proven))
