"""JointAttack: against detectors that plain PGD does not beat; its weight; corrected and rejected; noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import in_parts
from detectors import OddLogits, OffTheDigits, shares
from torch import Tensor, nn

from robustlit.attacks import PGD, JointAttack, Transfer
from robustlit.attacks.joint import _Weights
from robustlit.attacks.progress import report_to
from robustlit.threat import distance

LINF, L2 = JointAttack(eps=0.3, searches=4), JointAttack(eps=3.0, norm="l2", searches=4, method="alternate")
N = 30


@pytest.fixture
def digits(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return digits[0][:N], digits[1][:N]


@pytest.mark.parametrize("method", ["weighted", "alternate"])
def test_it_beats_a_detector_that_pgd_does_not_beat(method: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = OffTheDigits(net), digits
    blind = PGD(eps=0.3).run(model, x, y, seed=0)  # sees the net's slope only
    assert PGD(eps=0.3).run(net, x, y, seed=0).success.all()
    assert blind.success.float().mean() < 0.8
    assert Transfer(PGD(eps=0.3), net).run(model, x, y, seed=0).success.float().mean() < 0.2
    attack = replace(LINF, method=method)
    result = attack.run(model, x, y, seed=0)
    assert result.success.all()
    logits, excess = model.detection(result.x_adv)
    assert (logits.argmax(1) != y).all()
    assert (excess < 0).all()
    assert torch.equal(model(result.x_adv).argmax(1), result.prediction)
    assert (result.distance <= 0.3 + 1e-6).all()


def test_in_l2_it_beats_odd_logits_too(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = OddLogits(net, rate=0.25), digits
    attack = JointAttack(eps=2.5, norm="l2")
    blind, result = PGD(eps=2.5, norm="l2").run(model, x, y, seed=0), attack.run(model, x, y, seed=0)
    assert result.success.sum() >= blind.success.sum() + 4
    assert result.success.float().mean() > 0.85
    assert torch.equal(result.success, shares(model, result.x_adv, y, 1).bool())
    torch.testing.assert_close(result.distance, distance(result.x_adv, x, "l2"))
    assert (result.distance <= 2.5 + 1e-6).all()


@pytest.mark.slow
def test_noise_is_averaged_and_votes_decide(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = OffTheDigits(net, noise=0.1), digits
    state = torch.get_rng_state()
    result = LINF.run(model, x, y, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert Transfer(PGD(eps=0.3), net).run(model, x, y, seed=0).success.float().mean() < 0.2
    assert result.success.float().mean() > 0.9
    assert (shares(model, result.x_adv, y)[result.success] > 0.4).float().mean() > 0.9
    assert (result.backwards % model.draws == 0).all()
    again = LINF.run(model, x, y, seed=0)
    assert torch.equal(again.x_adv, result.x_adv)
    assert torch.equal(again.forwards, result.forwards)


@pytest.mark.parametrize("noise", [0.0, 0.1], ids=["kept", "fresh"])
def test_where_flagged_images_are_corrected_either_way_will_do(
    noise: float, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:12], digits[1][:12]
    model = OffTheDigits(net, rate=0.4, noise=noise, rejects=False)
    # This corrector is wrong as it is: to be flagged is enough, at a budget at which the net itself is robust.
    small = JointAttack(eps=0.06, searches=2, steps=20)
    alone = PGD(eps=0.06, steps=40).run(net, x, y, seed=0).success
    result = small.run(model, x, y, seed=0)
    assert result.success.sum() > alone.sum() + 3
    assert (shares(model, result.x_adv, y)[result.success] > 0.4).all()
    _, excess = model.detection(result.x_adv)
    assert (excess[result.success & ~alone] > 0).float().mean() > 0.7
    # A defense that does not show its corrector is attacked as a whole: no success is lost by it.
    hidden = small.run(Hidden(model), x, y, seed=0)
    assert (hidden.success | ~alone).all()
    assert (shares(model, hidden.x_adv, y)[hidden.success] > 0.4).all()


def test_progress_counts_the_steps_of_both_sides(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model = OffTheDigits(net, rejects=False)
    reported: list[float] = []
    with report_to(reported.append):
        result = JointAttack(eps=1e-6, searches=2, steps=5).run(model, digits[0][:4], digits[1][:4], seed=0)
    assert not result.success.all()
    assert sorted({round(share, 6) for share in reported}) == [number / 20 for number in range(20)]


def test_the_weight_is_searched_for_each_example() -> None:
    weights = _Weights(torch.ones(3, dtype=torch.float64))
    every = torch.arange(3)
    weights.update(every, torch.tensor([True, False, True]))
    assert weights.now.tolist() == [10.0, 0.1, 10.0]
    weights.update(every, torch.tensor([True, False, False]))
    torch.testing.assert_close(weights.now, torch.tensor([100.0, 0.01, 10**0.5], dtype=torch.float64))
    weights.update(torch.tensor([0, 2]), torch.tensor([False, True]))
    expected = torch.tensor([1000**0.5, 0.01, (10**0.5 * 10) ** 0.5], dtype=torch.float64)
    torch.testing.assert_close(weights.now, expected)


def test_each_search_starts_elsewhere(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Watching(OffTheDigits):
        seen: list[Tensor]

        def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
            if x.requires_grad:
                self.seen.append(x.detach().clone())
            return super().detection(x)

    x, y = digits[0][:1], digits[1][:1]
    model = Watching(net)
    model.seen = []
    JointAttack(eps=0.02, searches=4, steps=1).run(model, x, y, seed=0)
    assert len(model.seen) == 4
    assert torch.equal(model.seen[0], x)
    starts = torch.cat(model.seen).flatten(1)
    assert (torch.pdist(starts) > 0.1).all()


def test_a_wrong_weight_is_corrected(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = OffTheDigits(net), digits
    for weight in (1e-4, 1e4):
        one = JointAttack(eps=0.3, weight=weight, searches=1, confidence=50.0).run(model, x, y, seed=0)
        many = JointAttack(eps=0.3, weight=weight, searches=8, confidence=50.0).run(model, x, y, seed=0)
        assert many.success.float().mean() > 0.9
        assert many.success.sum() >= one.success.sum()
        assert weight > 1 or one.success.float().mean() < 0.9  # the detector all but ignored


@pytest.mark.slow
@pytest.mark.parametrize("attack", [LINF, L2], ids=lambda a: a.norm)
def test_alone_in_part_and_in_another_order(attack: JointAttack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:10].double(), digits[1][:10].clone()
    y[2] = (y[2] + 1) % 10
    for model in (OffTheDigits(net.double()), OffTheDigits(net, rejects=False)):
        eps = torch.linspace(0, 1, 10).double() * attack.eps
        index = torch.randperm(1000)[:10]
        whole = in_parts(replace(attack, searches=3, steps=10), model, x, y, index=index, eps=eps)
        assert (whole.forwards[2], whole.backwards[2], whole.distance[2]) == (2, 0, 0)


def test_it_reaches_the_class_that_it_is_asked_for(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = OffTheDigits(net), digits
    target = net(x).topk(2).indices[:, 1]
    result = JointAttack(eps=0.3, searches=4).run(model, x, y, target=target, seed=0)
    assert torch.equal(result.success, result.prediction == target)
    assert result.success.float().mean() > 0.5


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_every_pass_is_counted(noise: float, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Toll(OffTheDigits):
        forwards = backwards = 0

        def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.forwards += len(x)
            if x.requires_grad:
                x.register_hook(self.pay)
            return super().detection(x)

        def pay(self, gradient: Tensor) -> None:
            self.backwards += len(gradient)

    x, y = digits[0][:8], digits[1][:8]
    for rejects in (True, False):
        model = Toll(net, noise=noise, rejects=rejects)
        model.forwards = model.backwards = 0
        result = JointAttack(eps=0.15, searches=2, steps=8).run(model, x, y, seed=0)
        assert [int(result.forwards.sum()), int(result.backwards.sum())] == [model.forwards, model.backwards]
        assert model.backwards > 0


def test_logits_that_are_not_finite_stop_one_example_alone(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:6].double(), digits[1][:6]

    class Sick(OffTheDigits):
        def score(self, z: Tensor, logits: Tensor) -> Tensor:
            sick = (torch.cdist(z.flatten(1), x.flatten(1)).argmin(1) == 4) & (len(z) < 100)
            return super().score(z, logits) + torch.where(sick, float("nan"), 0.0)

        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z) + 0 * self.detection(z)[1].unsqueeze(1)

    attack = JointAttack(eps=0.3, searches=2, steps=10)
    with pytest.warns(UserWarning, match="1 of 6 examples got logits that are not finite during joint"):
        result = attack.run(Sick(net.double()), x, y, seed=0)
    assert result.x_adv.isfinite().all()
    assert result.finite.tolist() == [True] * 4 + [False, True]
    assert result.success[4]  # it names no class
    rest = torch.tensor([0, 1, 2, 3, 5])
    expected = attack.run(OffTheDigits(net), x[rest], y[rest], index=rest, seed=0)
    torch.testing.assert_close(result.x_adv[rest], expected.x_adv, rtol=0, atol=1e-9)


def test_it_refuses_bad_models(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    with pytest.raises(ValueError, match=r"JointAttack needs a model with detection.*SmallCNN has not.*LogitMatching"):
        LINF.run(net, x, y)
    model = Odd(net)
    for found in (net(x), (net(x), net(x)), (net(x)[:, 0], net(x)[:, 0]), (net(x), net(x)[:3, 0]), None):
        model.found = found
        with pytest.raises(ValueError, match=r"detection\(x\) of Odd must return logits .* batch of \d+, got"):
            replace(LINF, searches=1).run(model, x, y)


class Hidden(nn.Module):
    """A defense that shows its detector, but not its corrector."""

    rejects = False

    def __init__(self, model: OffTheDigits) -> None:
        super().__init__()
        self.model, self.stochastic, self.draws = model, model.stochastic, model.draws

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def detection(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.detection(x)


class Odd(nn.Module):
    """Never rejects, and answers `found` when it is asked for a detection."""

    rejects, stochastic, found = True, False, object()

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return torch.cat([logits, logits.amin(1, keepdim=True) - 1], 1)

    def detection(self, x: Tensor) -> object:
        return self.found
