"""Faults found in peers, as properties that any implementation should have: ours must, a faulty peer may fail.

A peer's case is marked xfail (not strict) with what is wrong there, so that `pytest -ra` prints it, and nothing here
breaks once a peer mends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from measure import Run
from peers import Peer
from torch import Tensor, nn

import robustlit.attacks
from robustlit.attacks import PGD

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def ours(name: str, label: str = "robustlit", *, targeted: bool = False, **settings: Any) -> Any:
    """Our attack of that name."""

    def craft(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        attack = getattr(robustlit.attacks, name)(**settings)
        return attack.run(net, x, y, target=(y + 1) % 10 if targeted else None, seed=0).x_adv

    return pytest.param(("", craft), id=label)


def peer(entry: Peer, fault: str | None = None) -> Any:
    """A peer, with what is wrong with it if anything."""
    marks = () if fault is None else pytest.mark.xfail(reason=f"{entry.label}: {fault}", strict=False)
    return pytest.param((entry.library, entry.craft), id=entry.label.replace(" ", "-"), marks=marks)


@pytest.fixture
def craft(request: pytest.FixtureRequest, need: Callable[[str], None]) -> Run:
    """A contender; the test is skipped where its library is not installed."""
    library, run = request.param
    if library:
        need(library)
    return run


def contenders(*params: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("craft", params, indirect=True)


class Logits(nn.Module):
    """A net whose logits are scaled or shifted: the predicted classes stay the same."""

    def __init__(self, net: nn.Module, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.net, self.scale, self.shift = net, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale + self.shift


@contenders(
    ours("NewtonFool"),
    peer(peers.art("NewtonFool", {"max_iter": 100, "eta": 0.01})),
    peer(
        peers.foolbox("NewtonFoolAttack", {"steps": 100, "stepsize": 0.01}, minimal=True),
        "both norms lost their square roots, the step divides by |gradient|^4 and overflows to NaN",
    ),
)
def test_newtonfool_stays_finite_and_breaks_most(craft: Run, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:25] for part in digits)
    x_adv = craft(net, x.clone(), y, 0.0)
    assert x_adv.isfinite().all(), f"{int((~x_adv.isfinite()).flatten(1).any(1).sum())} of {len(x)} are not finite"
    assert (net(x_adv).argmax(1) != y).double().mean() >= 0.8


@contenders(
    ours("DeepFool"),
    peer(peers.adv_lib("df", {"steps": 50})),
    peer(peers.foolbox("L2DeepFoolAttack", {"steps": 50}, minimal=True)),
    peer(peers.art("DeepFool", {"max_iter": 50, "epsilon": 0.02}), "gives up on a few examples (2 % of 500 digits)"),
    peer(
        peers.torchattacks("DeepFool", {"steps": 50}),
        "overshoots each step, not their sum: iterates near the boundary from inside and many never cross it",
    ),
)
def test_deepfool_breaks_an_undefended_net(craft: Run, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:25] for part in digits)
    broken = net(craft(net, x.clone(), y, 0.0)).argmax(1) != y
    assert broken.all(), f"{int((~broken).sum())} of {len(x)} are not broken"


@contenders(
    ours("MIM", eps=0.3, steps=10),
    peer(peers.foolbox("LinfMomentumIterativeFastGradientMethod", lambda e: {"abs_stepsize": 0.03})),
    # Its velocity is 0/0 = NaN here, and for ever; the images are finite only because torch takes sign(NaN) for 0.
    peer(peers.torchattacks("MIFGSM", {"eps": 0.3, "alpha": 0.03})),
    peer(peers.art("MomentumIterativeMethod", {"eps": 0.3, "eps_step": 0.03, "max_iter": 10})),
)
def test_mim_stays_finite_where_the_gradient_is_zero(craft: Run, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:25] for part in digits)
    x_adv = craft(Logits(net, scale=1e4), x.clone(), y, 0.3)
    assert x_adv.isfinite().all(), f"{int((~x_adv.isfinite()).flatten(1).any(1).sum())} of {len(x)} are not finite"


_FADES = "climbs cross-entropy in float32, whose gradient is zero beyond a margin of 104 logits"


@contenders(
    ours("PGD", eps=0.3, steps=20),
    ours("MIM", "robustlit-mim", eps=0.3, steps=20),
    ours("APGD", "robustlit-apgd", eps=0.3, steps=20),
    peer(peers.foolbox("LinfProjectedGradientDescentAttack", {"abs_stepsize": 0.0375, "steps": 20}), _FADES),
    peer(peers.torchattacks("PGD", {"eps": 0.3, "alpha": 0.0375, "steps": 20}), _FADES),
    peer(
        peers.art("ProjectedGradientDescent", {"eps": 0.3, "eps_step": 0.0375, "max_iter": 20}),
        _FADES,
    ),
    peer(peers.adv_lib("pgd_linf", {"ε": 0.3, "steps": 20, "absolute_step_size": 0.0375}), _FADES),
    peer(peers.auto_attack("APGDAttack", lambda e: {"eps": 0.3, "n_iter": 20}), _FADES),
)
def test_a_confident_net_is_not_robust(craft: Run, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:25] for part in digits)
    broken = net(craft(Logits(net, scale=1e4), x.clone(), y, 0.3)).argmax(1) != y
    assert broken.all(), f"{int((~broken).sum())} of {len(x)} look robust, though none is at eps 0.3 without the scale"


@pytest.mark.slow
@contenders(
    ours("CarliniWagner", steps=50, searches=4),
    peer(peers.adv_lib("carlini_wagner_l2", {"max_iterations": 50, "binary_search_steps": 4, "learning_rate": 0.1})),
    peer(
        peers.torchattacks("CW", {"c": 1, "steps": 200, "lr": 0.05}),
        "the best other logit is a maximum over logits times 0 or 1, which is 0 where all are negative",
    ),
)
def test_carlini_wagner_is_no_weaker_on_negative_logits(
    craft: Run, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:20] for part in digits)
    before, after = (net(craft(Logits(net, shift=s), x.clone(), y, 0.0)).argmax(1) != y for s in (0.0, -100.0))
    assert after.sum() >= before.sum() - 1, f"breaks {int(before.sum())}, with negative logits {int(after.sum())}"


class Constant(nn.Module):
    """A classifier that always predicts 7, though it has gradients: no image of a 7 can be broken."""

    def forward(self, x: Tensor) -> Tensor:
        rest = x.flatten(1)[:, :10] * 0.1
        return rest - 5 + 10 * nn.functional.one_hot(torch.full((len(x),), 7), 10)


@contenders(
    ours("CarliniWagner", steps=20, searches=3),
    peer(peers.adv_lib("carlini_wagner_l2", {"max_iterations": 20, "binary_search_steps": 3})),
    peer(
        peers.foolbox("L2CarliniWagnerAttack", {"steps": 20, "binary_search_steps": 3}, minimal=True),
        "an example that it cannot break comes back as a zero image",
    ),
)
def test_carlini_wagner_returns_no_zero_image_for_a_failure(craft: Run, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:5]
    x_adv = craft(Constant(), x.clone(), torch.full((5,), 7), 0.0)
    assert (x_adv.flatten(1).abs().sum(1) > 1).all(), "zero images"


@pytest.mark.slow
@contenders(
    ours("CarliniWagner", steps=60, searches=5, lr=0.1),
    peer(
        peers.adv_lib("carlini_wagner_l2", {"max_iterations": 60, "binary_search_steps": 5, "learning_rate": 0.1}),
        "a search is aborted when no example of the batch moves, so results depend on batch mates",
    ),
    peer(
        peers.foolbox("L2CarliniWagnerAttack", {"steps": 60, "binary_search_steps": 5, "stepsize": 0.1}, minimal=True),
        "a search is aborted on the batch's total loss, so results depend on batch mates",
    ),
)
def test_carlini_wagner_does_not_depend_on_batch_mates(
    craft: Run, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:10] for part in digits)
    together = craft(net, x.clone(), y, 0.0)
    alone = torch.cat([craft(net, x[k : k + 1].clone(), y[k : k + 1], 0.0) for k in range(4)])
    norms = [(part - x[:4]).flatten(1).norm(dim=1) for part in (together[:4], alone)]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-2, atol=0)


def best_pair(net: nn.Module, x: Tensor, target: int) -> set[int]:
    """The pair of pixels that Papernot's saliency map ranks first, by brute force over all pairs."""
    leaf = x.clone().requires_grad_(True)
    logits = net(leaf.unsqueeze(0))[0]
    a = torch.autograd.grad(logits[target], leaf, retain_graph=True)[0].flatten()
    b = torch.autograd.grad(logits.sum() - logits[target], leaf)[0].flatten()
    up, down = a[:, None] + a[None], b[:, None] + b[None]
    free = (x.flatten() < 1)[:, None] & (x.flatten() < 1)[None] & ~torch.eye(len(a), dtype=torch.bool)
    score = torch.where((up > 0) & (down < 0) & free, -up * down, -torch.inf)
    return set(divmod(int(score.argmax()), len(a)))


@contenders(
    ours("JSMA", theta=1.0, gamma=2 / 784, outputs="logits", targeted=True),
    peer(
        peers.art("SaliencyMapMethod", {"theta": 1.0, "gamma": 1 / 784}, targeted=True),
        "takes the two pixels of the largest target gradient and leaves out what the other classes gain",
    ),
    peer(peers.torchattacks("JSMA", {"theta": 1.0, "gamma": 1 / 784})),
)
def test_jsma_takes_the_pair_that_the_paper_ranks_first(
    craft: Run, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    # Black and white: torchattacks calls a pixel full from 0.99 on, ours counts a gradient by the room that is left.
    x_all = digits[0][:3].round()
    for x, y in zip(x_all, digits[1], strict=False):
        x_adv = craft(net, x[None].clone(), y[None], 0.0)[0]
        changed = set(torch.nonzero((x_adv - x).flatten().abs() > 1e-6).flatten().tolist())
        assert changed == best_pair(net, x, (int(y) + 1) % 10)


class Spy(nn.Module):
    """A net that keeps the batches it was given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x)


@pytest.mark.parametrize(
    "library",
    [
        "",
        pytest.param(
            "pyautoattack",
            marks=pytest.mark.xfail(
                reason="pyautoattack: reseeds the global generator in each call, so every batch gets the same noise",
                strict=False,
            ),
        ),
    ],
)
def test_another_batch_gets_other_noise(
    library: str, net: nn.Module, digits: tuple[Tensor, Tensor], need: Callable[[str], None]
) -> None:
    x, y = (part[:1] for part in digits)
    starts = []
    for batch in range(2):
        spy = Spy(net)
        if library:
            need(library)
            peers.auto_attack("APGDAttack", lambda e: {"eps": e, "n_iter": 2}).craft(spy, x.clone(), y, 0.1)
        else:
            PGD(eps=0.1, steps=2).run(spy, x, y, index=torch.tensor([batch]), seed=0)
        starts.append(next(seen for seen in spy.seen if not torch.equal(seen, x)))
    assert not torch.equal(*starts)
