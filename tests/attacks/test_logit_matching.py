"""LogitMatching: logits like those of a clean image, under noise too; what it needs of its guides."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from cases import Function, in_parts
from detectors import OddLogits, shares
from torch import Tensor, nn

from robustlit.attacks import PGD, LogitMatching, logit_matching
from robustlit.attacks.logit_matching import _Guides, _Losses
from robustlit.attacks.losses import Criterion
from robustlit.data import MNIST, Examples, load_mnist

N = 30
LINF, L2 = {"eps": 0.2, "noise": 0.1}, {"eps": 2.5, "norm": "l2", "noise": 0.1}


@pytest.fixture
def digits(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return digits[0][:N], digits[1][:N]


@pytest.fixture(scope="module")
def guides() -> tuple[Tensor, Tensor]:
    """Ten training digits of every class."""
    images, labels, _, _ = load_mnist()
    chosen = torch.cat([torch.nonzero(labels == k).squeeze(1)[:10] for k in range(10)])
    return images[chosen].float() / 255, labels[chosen]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LINF, L2], ids=["linf", "l2"])
def test_it_beats_a_detector_that_pgd_does_not_beat(
    settings: dict[str, float], net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]
) -> None:
    model, (x, y) = OddLogits(net, rate=0.25), digits
    attack = LogitMatching(**settings, guides=guides)  # type: ignore[arg-type]
    blind = PGD(attack.eps, norm=attack.norm).run(model, x, y, seed=0)
    result = attack.run(model, x, y, seed=0)
    assert blind.success.float().mean() < 0.8
    assert result.success.float().mean() > 0.85
    assert result.success.sum() >= blind.success.sum() + 4
    logits, excess = model.detection(result.x_adv)
    assert torch.equal(result.success, (logits.argmax(1) != y) & (excess < 0))
    assert (result.distance <= attack.eps + 1e-6).all()


@pytest.mark.slow
def test_it_needs_no_gradient_of_the_defense_and_fresh_noise_does_not_help(
    net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]
) -> None:
    class Hides(OddLogits):
        detection = None  # type: ignore[assignment]

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            logits = self.net(x)
            flagged = self.score(x + self.noise * torch.randn_like(x), logits) >= self.threshold
            best = logits.amax(1, keepdim=True)
            return torch.cat([logits, best + torch.where(flagged, 1.0, -1.0).unsqueeze(1)], 1)

    x, y = digits
    model, attack = Hides(net, rate=0.25, noise=0.1), LogitMatching(**LINF, guides=guides)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    result = attack.run(model, x, y, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert result.success.float().mean() > 0.8
    assert (shares(model, result.x_adv, y)[result.success] > 0.35).float().mean() > 0.9
    assert torch.equal(attack.run(model, x, y, seed=0).x_adv, result.x_adv)


class Unbreakable(nn.Module):
    """A model that is never broken, so that an attack on it takes all its steps."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.net, self.x, self.y = net, x, y

    def forward(self, z: Tensor) -> Tensor:
        near = torch.cdist(z.flatten(1), self.x.flatten(1)).argmin(1)
        return 8.0 * nn.functional.one_hot(self.y[near], 10) + 0.01 * self.net(z)

    def undefended(self) -> nn.Module:
        return self.net


def test_the_logits_end_at_a_guide_of_another_class_with_and_without_noise(
    net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    y = net(x).argmax(1)
    attack = LogitMatching(eps=0.3, guides=guides, steps=60, tries=1, noise=0.1, draws=4)
    generator = torch.Generator().manual_seed(7)
    noise = 0.1 * torch.randn(40, 1, *x.shape[1:], generator=generator)

    def under_noise(z: Tensor) -> Tensor:
        return torch.stack([net(z + part) for part in noise]).mean(0)

    result = attack.run(Unbreakable(net, x, y), x, y, seed=0)
    assert not result.success.any()
    with torch.no_grad():
        logits, wanted = net(result.x_adv), net(guides[0])
        far = torch.cdist(logits, wanted)
        chosen = far.argmin(1)
        assert (guides[1][chosen] != y).float().mean() > 0.9
        scale = torch.cdist(net(x), wanted).median()
        assert far.amin(1).median() < 0.15 * scale
        moved = (under_noise(result.x_adv) - under_noise(guides[0])[chosen]).norm(dim=1)
        assert moved.median() < 0.3 * scale


@pytest.mark.slow
def test_noise_is_matched_too(net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0], net(digits[0]).argmax(1)
    noise = 0.3 * torch.randn(40, 1, *x.shape[1:], generator=torch.Generator().manual_seed(7))

    def under_noise(z: Tensor) -> Tensor:
        return torch.stack([net(z + part) for part in noise]).mean(0)

    odd = {}
    for draws in (1, 5):
        attack = LogitMatching(eps=0.3, guides=guides, steps=60, tries=1, noise=0.3, draws=draws)
        found = attack.run(Unbreakable(net, x, y), x, y, seed=0).x_adv
        with torch.no_grad():
            odd[draws] = torch.cdist(under_noise(found), under_noise(guides[0])).amin(1).mean()
    assert odd[5] < 0.93 * odd[1]


def test_the_guide_is_the_nearest_one_that_the_defense_accepts() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2])
    accepted = torch.tensor([True, False, True, False, True])
    logits = torch.tensor([[0.5, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.5], [0.0, 0.0, 3.0]])
    here = torch.zeros(3, 3)

    def chosen(criterion: Criterion, accepted: Tensor = accepted) -> list[int]:
        losses = _Losses(_Guides(labels, accepted, logits, logits), criterion)
        losses.here(here)
        return losses.chosen.tolist()

    own = torch.tensor([0, 1, 2])
    assert chosen(Criterion(own)) == [2, 0, 0]
    assert chosen(Criterion(own, torch.tensor([1, 2, 0]))) == [2, 4, 0]
    assert chosen(Criterion(own, torch.tensor([1, 2, 0])), torch.zeros(5) > 0) == [1, 3, 0]  # better those than none


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LINF, L2], ids=["linf", "l2"])
def test_alone_in_part_and_in_another_order(
    settings: dict[str, float], net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]
) -> None:
    model = OddLogits(net.double(), rate=0.25)
    x, y = digits[0].double(), digits[1]
    accepted = model(x).argmax(1) < 10  # the others are attacked, right or wrong
    x, y = x[accepted][:10], y[accepted][:10].clone()
    y[2] = (model(x).argmax(1)[2] + 1) % 10
    attack = LogitMatching(**settings, guides=guides, steps=10, tries=3, look=4)  # type: ignore[arg-type]
    eps, index = torch.linspace(0, 1.3, 10).double() * attack.eps, torch.randperm(1000)[:10]
    given = guides[0].clone()
    whole = in_parts(attack, model, x, y, index=index, eps=eps)
    assert torch.equal(guides[0], given)
    assert (whole.forwards[2], whole.backwards[2], whole.distance[2]) == (2, 0, 0)


def test_only_differences_of_logits_count(
    net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:8].double(), digits[1][:8]
    attack = LogitMatching(eps=0.1, guides=guides, steps=8, tries=2)
    expected, found = attack.run(net.double(), x, y, seed=0), attack.run(Function(lambda z: net(z) + 1e3), x, y, seed=0)
    assert torch.equal(found.success, expected.success)
    torch.testing.assert_close(found.x_adv, expected.x_adv, rtol=0, atol=1e-4)


def test_it_reaches_the_class_that_it_is_asked_for(
    net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]
) -> None:
    model, (x, y) = OddLogits(net, rate=0.25), digits
    target = net(x).topk(2).indices[:, 1]
    result = LogitMatching(eps=0.3, guides=guides, noise=0.1).run(model, x, y, target=target, seed=0)
    assert torch.equal(result.success, result.prediction == target)
    assert result.success.float().mean() > 0.6


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_every_pass_but_those_of_the_guides_is_counted(
    noise: float, net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]
) -> None:
    class Toll(nn.Module):
        forwards = backwards = 0

        def forward(self, x: Tensor) -> Tensor:
            self.forwards += len(x)
            if x.requires_grad:
                x.register_hook(self.pay)
            return net(x)

        def pay(self, gradient: Tensor) -> None:
            self.backwards += len(gradient)

    class Noisy(nn.Module):
        stochastic = noise > 0

        def __init__(self) -> None:
            super().__init__()
            self.source, self.passed = Toll(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.passed += len(x)
            return net(x + noise * torch.randn_like(x))

        def undefended(self) -> nn.Module:
            return self.source

    x, y = digits[0][:8], digits[1][:8]
    model = Noisy()
    result = LogitMatching(eps=0.1, guides=guides, steps=6, tries=2, draws=3, look=3).run(model, x, y, seed=0)
    of_guides = len(guides[1]) * 9, len(guides[1])  # itself and eight noisy copies; once to the defense
    passes = model.source.forwards + model.passed - sum(of_guides)
    assert [int(result.forwards.sum()), int(result.backwards.sum())] == [passes, model.source.backwards]


def test_a_constant_model_is_not_broken(digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]) -> None:
    constant = Function(lambda z: z.flatten(1).sum(1, keepdim=True) * 0 + torch.arange(10.0))
    attack = LogitMatching(eps=0.1, guides=guides, steps=3, tries=2)
    result = attack.run(constant, digits[0][:4], torch.full((4,), 9), seed=0)
    assert not result.success.any()
    assert result.x_adv.isfinite().all()


def test_examples_serve_as_guides(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6], digits[1][:6]
    guides = Examples(MNIST(), per_class=3)
    attack = LogitMatching(eps=0.2, guides=guides, noise=0.1)
    found = attack.run(OddLogits(net), x, y, seed=0)
    pair = LogitMatching(eps=0.2, guides=(guides.images, guides.labels), noise=0.1)
    assert torch.equal(found.x_adv, pair.run(OddLogits(net), x, y, seed=0).x_adv)
    assert "Examples(<MNIST>, per_class=3" in repr(attack)


def test_what_it_refuses(net: nn.Module, digits: tuple[Tensor, Tensor], guides: tuple[Tensor, Tensor]) -> None:
    images, labels = guides
    for given, parts in (
        (None, ["Examples", "None"]),
        (images, ["images, labels", "Tensor"]),
        ((images,), ["1 of"]),
        ((images, labels.tolist()), ["'list'"]),
        ((images * 255, labels), ["[0, 1]"]),
        ((images, labels[:-1]), ["labels of the guides", "(100,)"]),
    ):
        with pytest.raises(ValueError, match="must") as caught:
            LogitMatching(guides=given)  # type: ignore[arg-type]
        for part in parts:
            assert part in str(caught.value)
    for settings, parts in (
        ({"noise": -0.1}, ["noise", "at least 0", "-0.1"]),
        ({"noise": float("inf")}, ["noise", "inf"]),
        ({"draws": 0}, ["draws", "got 0"]),
        ({"steps": 2.5}, ["steps", "2.5"]),
        ({"tries": 0}, ["tries", "got 0"]),
        ({"look": True}, ["look", "True"]),
        ({"eps": 8}, ["8/255"]),
    ):
        with pytest.raises(ValueError, match="must") as caught:
            LogitMatching(guides=guides, **settings)  # type: ignore[arg-type]
        for part in parts:
            assert part in str(caught.value)
    with pytest.raises(TypeError, match="guides"):
        LogitMatching(eps=0.3)  # type: ignore[call-arg]
    x, y = digits
    with pytest.raises(ValueError, match=r"guides must have the shape of the images, \(1, 28, 28\), got \(1, 14, 14\)"):
        LogitMatching(guides=(images[..., ::2, ::2], labels)).run(net, x, y)
    with pytest.raises(ValueError, match=r"guides hold no image of class 3, .* 10 classes"):
        LogitMatching(guides=(images[labels != 3], labels[labels != 3])).run(net, x, y)


def test_it_is_a_value_and_for_adaptive_attackers_only(guides: tuple[Tensor, Tensor]) -> None:
    attack = LogitMatching(eps=0.2, guides=guides)
    assert LogitMatching.adaptive_only
    assert attack == LogitMatching(eps=0.2, guides=(guides[0].clone(), guides[1].clone()))
    assert attack != LogitMatching(eps=0.2, guides=(guides[0].flip(0), guides[1].flip(0)))
    assert hash(attack) == hash(replace(attack))
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert "guides=<100 images>" in repr(attack)
    with pytest.raises(FrozenInstanceError):
        attack.noise = 0.3  # type: ignore[misc]


def test_guides_are_classified_in_batches(
    net: nn.Module, guides: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_matching, "default_batch_size", lambda shape: 7)
    seen: list[int] = []

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return net(x)

    model, attack = Function(counted), LogitMatching(**LINF, guides=guides)  # type: ignore[arg-type]
    attack._logits_of_guides(model, model, guides[0][:1])
    assert max(seen) == 7
