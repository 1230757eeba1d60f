"""On the same weights, images and budget, our attack breaks at least as many images as a peer's, and no farther away.

Slack: 1 % of the median distance, and three images of a hundred where both start at random: the same attack differs
by as much from seed to seed. Where a peer differs from the paper: test_peer_faults.py.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import pytest
from matches import MATCHES, Match
from measure import Outcome, judge, ours, timed
from peers import Peer
from torch import Tensor, nn

pytestmark = pytest.mark.peers

IMAGES = {
    "jsma": 6,
    "jsma-logits": 6,
    "carlini-wagner": 20,
    "carlini-wagner-small-steps": 15,
    "fab-linf": 30,
    "fab-l2": 30,
}
IMAGES |= {"auto-attack": 20, "auto-attack-l2": 20, "worst-case": 20, "newtonfool": 25, "nearest-l2": 50, "square": 50}
SLOW = {
    ("deepfool", "torchattacks"): 12,
    ("deepfool", "art"): 30,
    ("jsma", "torchattacks"): 3,
    ("jsma-logits", "torchattacks"): 3,
}  # loops over images
EPS = {"undefended": 0.06, "robust": 0.15}  # where some images are broken and some are not
RANDOM = (
    "pgd", "pgd-l2", "apgd-ce", "apgd-dlr", "apgd-t", "square", "fab-linf", "fab-l2", "auto-attack", "auto-attack-l2",
)  # fmt: skip
CASES = [
    pytest.param(
        match, peer, id=f"{match.name}-{peer.label.replace(' ', '-')}",
        marks=pytest.mark.slow if "whole plan" in peer.label else (),
    )
    for match in MATCHES
    for peer in match.peers
]  # fmt: skip


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, str, int], Outcome]:
    """The outcomes of our attacks, so that each runs once for all peers."""
    return {}


@pytest.mark.parametrize("kind", ["undefended", "robust"])
@pytest.mark.parametrize(("match", "peer"), CASES)
def test_at_least_as_strong(
    match: Match,
    peer: Peer,
    kind: str,
    digits: tuple[Tensor, Tensor],
    need: Callable[[str], None],
    known: dict[tuple[str, str, int], Outcome],
    request: pytest.FixtureRequest,
) -> None:
    need(peer.library)
    net: nn.Module = request.getfixturevalue("robust" if kind == "robust" else "net")
    count = SLOW.get((match.name, peer.library), IMAGES.get(match.name, 100))
    x, y = (part[:count] for part in digits)
    eps = EPS[kind] * match.scale
    match = dataclasses.replace(match, few=count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if (match.name, kind, count) not in known:
            known[match.name, kind, count] = judge(net, x, y, timed(ours(match), net, x, y, eps)[0], match, eps)
        mine = known[match.name, kind, count]
        theirs = judge(net, x, y, timed(peer.craft, net, x, y, eps)[0], match, eps)
    line = f"ours {mine.rate:.1%} at {mine.median:.4f}, {peer.label} {theirs.rate:.1%} at {theirs.median:.4f}"
    print(line)  # shown by pytest -s, and beside a failure
    assert mine.error.sum() >= theirs.error.sum() - (3 if match.name in RANDOM else 0), line
    # ART's JSMA takes the two largest gradients of the target and no saliency map: see the match jsma-probabilities.
    if match.minimal and (match.name, peer.library) != ("jsma", "art"):
        assert mine.median <= 1.01 * theirs.median, line
