"""LogitDetector: the odds under noise, their calibration, and the data that it refuses to be detector on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustlit.classifier import attack_view, draws_of, is_stochastic
from robustlit.defenses import LogitDetector, OddsTest
from robustlit.defenses.detection import with_rejection
from robustlit.models import SmallCNN

Digits = Callable[[int, int], tuple[Tensor, Tensor]]


@pytest.fixture
def detector(fitted: Callable[[str], LogitDetector]) -> LogitDetector:
    """A fitted detector with kept noise, which a test may calibrate again."""
    return copy.deepcopy(fitted("LogitDetector"))


def test_the_score_is_the_largest_z_score_over_pairs_with_the_predicted_class(
    detector: LogitDetector, train_digits: Digits
) -> None:
    x, clean = train_digits(30_000, 30_006)[0], train_digits(0, 1500)[0]
    net, noise = detector.net, detector.test.noise[0]

    def gains(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = net(images)
            y = logits.argmax(1)
            noisy = torch.stack([net(images + eta) for eta in [*noise, *-noise]]).mean(0)
            return (noisy - noisy[torch.arange(len(y)), y, None]) - (logits - logits.amax(1, keepdim=True)), y

    of_clean, y_clean = gains(clean)
    g, y = gains(x)
    expected = []
    for i in range(len(x)):
        like = of_clean[y_clean == y[i]]
        scores = [(g[i, z] - like[:, z].mean()) / like[:, z].std() for z in range(10) if z != y[i]]
        expected.append(max(scores))
    logits, excess = detector.detection(x)
    torch.testing.assert_close(excess + detector.test.threshold, torch.stack(expected), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits, net(x))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_the_false_positive_rate_is_kept(detector: LogitDetector, rate: float, train_digits: Digits) -> None:
    detector.calibrate(rate)
    assert detector.false_positive_rate == rate
    scores = detector.test.held_out_scores
    assert int((scores >= detector.test.threshold).sum()) == int(rate * 1501)
    flagged = float((detector.excess(train_digits(40_000, 42_000)[0]) >= 0).double().mean())
    deviation = (rate * (1 - rate) * (1 / 1500 + 1 / 2000)) ** 0.5  # of the calibration and of this estimate
    assert abs(flagged - rate) < 3.5 * deviation


def test_a_rate_may_also_be_given_to_the_detector_that_loads_the_state(detector: LogitDetector) -> None:
    other = LogitDetector(SmallCNN(), 0.05, scales=(0.01,), samples=4, fresh_noise=False)
    other.load_state_dict(detector.state_dict())
    assert other.test.threshold < detector.test.threshold
    detector.calibrate(0.05)
    assert torch.equal(other.test.threshold, detector.test.threshold)


def test_the_last_column_wins_exactly_where_an_image_is_flagged(detector: LogitDetector, train_digits: Digits) -> None:
    logits = torch.tensor([[3.0, 1e4, -1.0]]).repeat(5, 1)
    excess = torch.tensor([0.0, 1e-9, -1e-9, 5.0, -5.0])
    assert with_rejection(logits, excess).argmax(1).tolist() == [3, 3, 1, 3, 1]
    x = train_digits(30_000, 30_200)[0]
    detector.calibrate(0.2)
    assert detector.rejects
    rejected = detector(x).argmax(1) == 10
    assert torch.equal(rejected, detector.excess(x) >= 0)
    assert 0 < rejected.sum() < 100
    assert torch.equal(detector(x)[:, :10], detector.net(x))


def test_its_gradient_is_that_of_finite_differences(detector: LogitDetector, train_digits: Digits) -> None:
    detector.to(torch.float64)
    x = train_digits(30_000, 30_008)[0].double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(detector.detection(x)[1].sum(), x)
    direction = torch.randn_like(x)
    step = 1e-6
    with torch.no_grad():
        slope = (detector.detection(x + step * direction)[1] - detector.detection(x - step * direction)[1]) / (2 * step)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slope, rtol=1e-4, atol=1e-4)
    assert gradient.flatten(1).abs().sum(1).min() > 0


def test_autocast_does_not_round_the_score_away(detector: LogitDetector, train_digits: Digits) -> None:
    x = train_digits(30_000, 30_050)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(detector(x), detector(x.clone()).float())
        inside = detector(x)
    assert torch.equal(inside, detector(x))


def test_fresh_noise_makes_it_stochastic_and_kept_noise_does_not(
    detector: LogitDetector, net: nn.Module, train_digits: Digits
) -> None:
    x = train_digits(30_000, 30_010)[0]
    assert not is_stochastic(detector)
    assert draws_of(detector) == 1
    assert torch.equal(detector(x), detector(x))
    fresh, again = (LogitDetector(net, scales=(0.01,), samples=6) for _ in range(2))
    state = torch.get_rng_state()
    for one in (fresh, again):
        one.fit(clean=train_digits(0, 600), held_out=train_digits(20_000, 20_300), seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert is_stochastic(fresh)
    assert draws_of(fresh) * 6 >= 20
    assert not torch.equal(fresh(x), fresh(x))
    assert torch.equal(again.test.held_out_scores, fresh.test.held_out_scores)


def test_every_noise_has_its_size() -> None:
    for noise, deviation, largest in (("normal", 0.3, 9.0), ("sign", 0.3, 0.3), ("uniform", 0.3 / 3**0.5, 0.3)):
        test = OddsTest(noises=(noise,), scales=(0.3,), samples=2)
        drawn = test._noise(0, test.cells[0], torch.zeros(50, 1, 28, 28), 0, 2)
        assert drawn.shape == (2, 50, 1, 28, 28)
        assert float(drawn.std()) == pytest.approx(deviation, rel=0.02)
        assert float(drawn.abs().max()) <= largest + 1e-6
        assert abs(float(drawn.mean())) < 0.01


class _Spike(nn.Module):
    """The class of the largest of three pixels; in a thin band of the fourth pixel always class 2."""

    def forward(self, x: Tensor) -> Tensor:
        logits = 5 * x.flatten(1)[:, :3]
        spike = 1000 * (0.02 - (x.flatten(1)[:, 3] - 0.8).abs()).relu()
        return torch.cat([logits[:, :2], logits[:, 2:] + spike.unsqueeze(1)], 1)


def _points(count: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 2, 2)
    x[:, 0, 1, 1] *= 0.5
    return x, x.flatten(1)[:, :3].argmax(1)


@pytest.mark.parametrize("fresh_noise", [True, False])
def test_adversarial_images_that_noise_undoes_are_detected(fresh_noise: bool) -> None:
    detector = LogitDetector(_Spike(), noises=("normal", "uniform"), scales=(0.1,), fresh_noise=fresh_noise)
    detector.fit(clean=_points(2000), held_out=_points(1000))
    x, y = _points(500)
    adversarial = x.clone()
    adversarial[:, 0, 1, 1] = 0.8
    assert (detector.net(adversarial).argmax(1) == 2).all()
    others = y != 2
    curve = detector.roc(clean_x=x, adversarial_x=adversarial[others])
    assert curve.auc > 0.999
    assert (detector.excess(adversarial[others]) >= 0).all()
    assert (detector.excess(x) >= 0).double().mean() < 0.04
    assert detector.roc(clean_x=adversarial[others], adversarial_x=x).auc == pytest.approx(1 - curve.auc, abs=1e-3)
    assert curve.false_positive_rate[0] == curve.detection_rate[0] == 0


def test_clean_and_adversarial_arguments_cannot_be_confused(detector: LogitDetector, train_digits: Digits) -> None:
    x, _ = train_digits(0, 2)
    with pytest.raises(TypeError):
        detector.roc(x, x)  # type: ignore[misc]


def test_fitting_leaves_the_modes_of_the_net(detector: LogitDetector, net: nn.Module, train_digits: Digits) -> None:
    assert attack_view(detector) is detector
    detector = LogitDetector(net, scales=(0.01,), samples=2).train()
    net.features.eval()  # type: ignore[union-attr]  # a frozen part
    flags = [m.training for m in detector.modules()]
    detector.fit(clean=train_digits(0, 600), held_out=train_digits(20_000, 20_200))
    assert [m.training for m in detector.modules()] == flags
    assert any(flags)
    assert not all(flags)


def test_too_few_clean_images_of_a_class_are_refused(net: nn.Module, train_digits: Digits) -> None:
    x, y = train_digits(0, 600)
    few = torch.cat([torch.nonzero(y != 4).squeeze(1), torch.nonzero(y == 4).squeeze(1)[:5]])
    with pytest.raises(ValueError, match=r"class 4 is predicted for \d of the \d+ clean images.*at least 20"):
        LogitDetector(net, samples=2).fit(clean=(x[few], y[few]), held_out=train_digits(20_000, 20_200))


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, True, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(detector: LogitDetector, net: nn.Module, rate: float) -> None:
    with pytest.raises(ValueError, match=r"false_positive_rate must be a share in \(0, 1\), got"):
        LogitDetector(net, rate)
    with pytest.raises(ValueError, match=r"false_positive_rate must be a share in \(0, 1\), got"):
        detector.calibrate(rate)


def test_a_rate_too_small_for_the_held_out_images_is_refused(
    detector: LogitDetector, net: nn.Module, train_digits: Digits
) -> None:
    with pytest.raises(ValueError, match=r"0\.0001 cannot be calibrated on 1500 held-out images: at least 9999 are"):
        detector.calibrate(0.0001)
    with pytest.raises(ValueError, match=r"0\.01 cannot be calibrated on 98 held-out images: at least 99 are"):
        LogitDetector(net, 0.01).fit(clean=train_digits(0, 600), held_out=train_digits(20_000, 20_098))
    LogitDetector(net, 0.01, samples=2).fit(clean=train_digits(0, 600), held_out=train_digits(20_000, 20_099))


def test_an_unfitted_detector_and_a_wrong_image_size_are_refused(
    detector: LogitDetector, net: nn.Module, train_digits: Digits
) -> None:
    x = train_digits(0, 2)[0]
    with pytest.raises(ValueError, match="is not fitted: call fit"):
        LogitDetector(net)(x)
    with pytest.raises(ValueError, match="is not fitted"):
        LogitDetector(net).calibrate(0.05)
    with pytest.raises(ValueError, match=r"drawn for images \(1, 28, 28\), got \(1, 30, 30\)"):
        detector.test._noise(0, detector.test.cells[0], torch.zeros(2, 1, 30, 30), 0, 1)
