"""Checks of the evaluation itself: whether its rows can be repeated, and whether its images differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robustlit.attacks import BudgetAttack
from robustlit.checks import TOLERANCE
from robustlit.classifier import is_stochastic
from robustlit.results.verdict import Check
from robustlit.verdict.context import MOST_COMPARED, Context
from robustlit.verdict.probe import Probe
from robustlit.verdict.spec import ROWS, CheckSpec

_MOST_DIFFERING = 0.2  # of a random model's rows: its draws depend on the images that are attacked together
_SAME = 0.05  # of the median distance of two images: nearer ones count as copies


def replayed(spec: CheckSpec, context: Context) -> Check:
    """26: rows of the table come out the same when the attack is run again with its seed and the example's number.

    Half of the rows are those of robust examples that cost the fewest passes: a row that was changed from broken to
    robust keeps the few passes of an attack that stopped early. The others are drawn by the seed.
    """
    attack, seed, evaluation = context.right.attack, context.evaluation.meta.get("seed"), context.evaluation
    own = next((a for name, a in context.named.items() if name == context.attack_name), None)
    if not isinstance(own, BudgetAttack) or isinstance(seed, bool) or not isinstance(seed, int):
        return spec.undecided("not known with which settings and seed the table was made; give the attacks: verdict("
                              "evaluation, model, data, attacks)")  # fmt: skip
    rows = evaluation.rows(str(context.attack_name), "adaptive")
    rows = rows[((rows["eps"] - own.eps).abs() <= TOLERANCE) & rows["clean"]].set_index("index")
    probe = context.right.part(torch.isin(context.right.index, context.right.index.new_tensor(rows.index.to_numpy())))
    rows = rows.loc[probe.index.tolist()]
    robust = ~rows["success"].to_numpy(dtype=bool)
    chosen = _chosen((rows["forwards"] + rows["backwards"]).to_numpy(), robust, context.sizes[ROWS], context.right.seed)
    some = replace(probe.part(torch.as_tensor(chosen, device=probe.y.device)), seed=seed)
    expected = torch.as_tensor(~robust[chosen], device=probe.y.device)
    differs = _broken(some, own) != expected
    # Rounding depends on the batch, and may decide an example at the very edge: repeated alone, it must differ again.
    for place in torch.nonzero(differs).flatten().tolist():
        differs[place] = bool(_broken(some.part(torch.tensor([place])), own)[0] != expected[place])
    if is_stochastic(context.model):
        spec = replace(spec, limit=_MOST_DIFFERING)
    return spec.share(int(differs.sum()), len(some), f"rows that {attack.name} with the same seed does not repeat:")


def _broken(probe: Probe, attack: BudgetAttack) -> Tensor:
    return probe.run(attack).success


def _chosen(passes: np.ndarray, robust: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the places of `count` rows: half of them robust ones with the fewest passes, the others drawn."""
    places = np.random.default_rng(seed).permutation(len(passes))
    cheapest = places[robust[places]]
    cheapest = cheapest[np.argsort(passes[cheapest], kind="stable")][: -(-count // 2)]
    return np.sort(np.append(cheapest, places[~np.isin(places, cheapest)][: count - len(cheapest)]))


def distinct(spec: CheckSpec, context: Context) -> Check:
    """27: the images differ from each other."""
    if (idle := context.nothing_to_probe(0)) is not None:
        return spec.check(*idle)
    flat = context.images[:MOST_COMPARED].flatten(1).float()
    apart = torch.cdist(flat, flat)
    if len(flat) < 2:
        return spec.undecided("a single image; evaluate more")
    same = apart < _SAME * float(apart[~torch.eye(len(flat), dtype=torch.bool, device=apart.device)].median())
    repeated = same.tril(-1).any(1)
    repeated |= (apart <= 1e-6).tril(-1).any(1)  # all of them may be copies
    return spec.share(int(repeated.sum()), len(flat), "images that are copies of another, and add nothing:")
