"""DeepFool: the nearest boundary, at a lower price."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks.attack import Attack, AttackResult
from robustlit.attacks.deepfool import DeepFool
from robustlit.threat import distance

ALL = [DeepFool(), DeepFool(norm="linf")]
FIELDS = ("x_adv", "success", "prediction", "distance", "forwards", "backwards")
SHAPES = [(12,), (1, 3, 4), (3, 4, 4)]
SHARE_OF_ROUNDING_BROKEN = 0.9
UNUSABLE: list[tuple[Callable[[], Attack], str]] = [
    (lambda: DeepFool(steps=0), "steps must be"),
    (lambda: DeepFool(overshoot=-0.1), "overshoot must be at least 0"),
    (lambda: DeepFool(overshoot=math.nan), "overshoot must be"),
    (lambda: DeepFool(candidates=1), "candidates must be at least 2"),
    (lambda: DeepFool(candidates=2.5), "candidates must be"),  # type: ignore[arg-type]
    (lambda: DeepFool(norm="l1"), "norm must be"),
]


class Linear(nn.Module):
    """Logits of a flat image."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("bias", torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def _same(part: AttackResult, whole: AttackResult, rows: Tensor) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[rows], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_the_result_agrees_with_the_net(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30], digits[1][:30]
    before = x.clone()
    result = attack.run(net, x, y, seed=0)
    assert torch.equal(x, before)
    with torch.no_grad():
        prediction = net(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, prediction != y)
    assert result.success.float().mean() >= 0.9
    torch.testing.assert_close(result.distance, distance(result.x_adv, x, attack.norm))
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_alone_in_part_and_in_another_order(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    net, x, y, n = net.double(), digits[0][:10].double(), digits[1][:10].clone(), 10
    y[4] = (y[4] + 1) % 10
    whole = attack.run(net, x, y, seed=7)
    assert len({*whole.backwards.tolist()}) >= 3  # they leave at different steps, or this says nothing of compaction
    for rows in [torch.tensor([i]) for i in range(n)] + [torch.randperm(n), torch.randperm(n)[:4]]:
        _same(attack.run(net, x[rows], y[rows], seed=7), whole, rows)


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_a_misclassified_example_comes_back_as_it_was(
    attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:6], net(digits[0][:6]).argmax(1)
    wrong = torch.tensor([True, False, False, True, False, False])
    result = attack.run(net, x, torch.where(wrong, (y + 1) % 10, y))
    assert torch.equal(result.x_adv[wrong], x[wrong])
    assert torch.equal(result.distance[wrong], torch.zeros(2))
    assert result.success[wrong].all()
    assert result.forwards[wrong].tolist() == [2, 2]
    assert result.backwards[wrong].tolist() == [0, 0]
    assert (result.distance[~wrong] > 0).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ALL, ids=str)
def test_nothing_spoils_an_attack(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = digits[0][:6]
    y = net(x).argmax(1)

    class Of(nn.Module):
        def __init__(self, output: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.output = output

        def forward(self, z: Tensor) -> Tensor:
            return self.output(z)

    # No gradient at all; a tie of all classes; logits that are not numbers anywhere.
    for output in (lambda z: net(z).round() * 0 + F.one_hot(y, 10)[: len(z)], lambda z: net(z) * 0):
        result = attack.run(Of(output), x, torch.zeros_like(y) if output(x).sum() == 0 else y)
        assert not result.success.any()
        assert result.x_adv.isfinite().all()
    for value in (float("nan"), float("inf"), -float("inf")):

        def breaks(z: Tensor, value: float = value) -> Tensor:
            """Not a number for the first image (told by its own look) as soon as it has moved."""
            near = torch.cdist(z.detach().flatten(1), x.flatten(1))
            broken = (near.argmin(1) == 0) & (near.amin(1) > 0)
            return torch.where(broken.unsqueeze(1) & (torch.arange(10) != 3), value, net(z))

        result = attack.run(Of(breaks), x, y)
        assert result.success.tolist() == [False] + [True] * 5
        assert not result.finite[0]
        assert result.x_adv.isfinite().all()
    # All logits negative; as confident as a distilled net.
    shifted = attack.run(Of(lambda z: net(z) - 1000), x, y)
    assert shifted.success.all()
    confident = attack.run(Of(lambda z: net(z) * 1000), x, y)
    assert confident.success.all()


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_modes_and_gradients_are_left_alone(attack: Attack) -> None:
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 3)
    )
    x, y = torch.rand(4, 2, 8, 8), torch.tensor([0, 1, 2, 0])
    state = {k: v.clone() for k, v in body.state_dict().items()}
    with torch.inference_mode():
        result = attack.run(body.train(), x, y)
    assert all(m.training for m in body.modules())
    assert all(p.grad is None for p in body.parameters())
    assert all(torch.equal(v, state[k]) for k, v in body.state_dict().items())
    assert result.success.any()


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_a_defense_is_judged_itself(attack: Attack, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    class Rounding(nn.Module):
        stochastic = False

        def forward(self, x: Tensor) -> Tensor:
            return net((x * 4).round() / 4)

        def attack_view(self) -> nn.Module:
            return Through()

    class Through(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x + ((x * 4).round() / 4 - x).detach())

    x, y = digits[0][:12], digits[1][:12]
    defended = Rounding()
    result = attack.run(defended, x, y)
    assert torch.equal(result.success, defended(result.x_adv).argmax(1) != y)
    assert result.success.float().mean() >= SHARE_OF_ROUNDING_BROKEN


def test_unusable_hyperparameters() -> None:
    for make, part in UNUSABLE:
        with pytest.raises(ValueError, match=part):
            make()


def _boxless(batch: int, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Linear, Tensor]:
    """Images in the middle of the box and a linear net whose boundaries are near."""
    x = torch.rand(batch, *shape, dtype=torch.float64) * 0.2 + 0.4
    model = Linear(torch.randn(classes, math.prod(shape), dtype=torch.float64))
    with torch.no_grad():
        model.bias -= model(torch.full_like(x[:1], 0.5))[0]
    return x, model, model(x).argmax(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("classes", [2, 3, 10, 40])
def test_the_nearest_boundary_of_a_linear_net(norm: str, shape: tuple[int, ...], batch: int, classes: int) -> None:
    x, model, y = _boxless(batch, shape, classes)
    gap = model(x).gather(1, y[:, None]) - model(x)
    slopes = torch.linalg.vector_norm(model.weight[y][:, None] - model.weight, 2 if norm == "l2" else 1, dim=2)
    optimum = (gap / slopes).scatter(1, y[:, None], math.inf).amin(1)
    result = DeepFool(norm=norm, candidates=None).run(model, x, y)
    assert result.success.all()
    assert (result.distance >= optimum * (1 - 1e-9)).all()
    assert (result.distance <= optimum * 1.02 + 1e-6).all()
    assert (result.forwards <= 16).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_first_step_is_the_formula_of_the_paper(norm: str) -> None:
    x, model, y = _boxless(3, (1, 3, 4), 2)
    result = DeepFool(norm=norm, overshoot=0.5, steps=1).run(model, x, y)
    gap = (model(x).gather(1, y[:, None]) - model(x)).amax(1)
    w = model.weight[1 - y] - model.weight[y]
    if norm == "l2":
        direction = (gap / w.norm(dim=1) ** 2)[:, None] * w
    else:
        direction = (gap / w.norm(p=1, dim=1))[:, None] * w.sign()
    moved = (result.x_adv - x).flatten(1)
    torch.testing.assert_close(F.normalize(moved), F.normalize(direction))
    assert (moved.norm(dim=1) <= 1.02 * direction.norm(dim=1)).all()  # trimmed


def test_a_few_candidates_are_those_of_highest_logit() -> None:
    # The nearest boundary is that of the class of lowest logit; the runner-up's lies farther.
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    model = Linear(weight, torch.tensor([1.0, 0.2, -55.0], dtype=torch.float64))
    x, y = torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    assert DeepFool(candidates=2).run(model, x, y).prediction.tolist() == [1]
    assert DeepFool(candidates=3).run(model, x, y).prediction.tolist() == [2]
    assert DeepFool(candidates=None).run(model, x, y).prediction.tolist() == [2]


def test_passing_over_classes_finds_the_same_and_costs_less(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:60], digits[1][:60]
    pruned = DeepFool().run(net, x, y)
    assert pruned.success.all()
    assert pruned.backwards.float().mean() < 9  # nine would be the first step's alone
    spread = (pruned.distance - DeepFool(candidates=None).run(net, x, y).distance).abs().max()
    assert spread == 0  # ten classes are all


def test_it_comes_as_near_as_the_authors_loop_without_the_trimming(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:40], digits[1][:40]
    distances = []
    for image, label in zip(x, y, strict=True):  # algorithm 2 as printed, all ten classes at every step
        z = image.clone()
        for _ in range(50):
            z.requires_grad_(True)
            logits = net(z[None])[0]
            if logits.argmax() != label:
                break
            jacobian = torch.stack(
                [torch.autograd.grad(logits[k] - logits[label], z, retain_graph=True)[0] for k in range(10)]
            )
            gaps, norms = (logits - logits[label]).abs().detach(), jacobian.flatten(1).norm(dim=1)
            ratio = (gaps / norms).nan_to_num(math.inf)
            ratio[label] = math.inf
            k = ratio.argmin()
            z = (z.detach() + 1.02 * (ratio[k] + 1e-4) * jacobian[k] / norms[k]).clamp(0, 1)
        distances.append((z.detach() - image).norm())
    theirs = torch.stack(distances)
    ours = DeepFool().run(net, x, y).distance
    assert ours.median() <= 1.01 * theirs.median()
    assert ours.mean() <= 1.01 * theirs.mean()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_overshoot_is_trimmed_and_the_point_stays_adversarial(
    norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:30], digits[1][:30]
    result = DeepFool(norm=norm, overshoot=0.5).run(net, x, y)
    assert result.success.all()
    for row in range(30):  # alone, in another batch than where it was found
        assert net(result.x_adv[row : row + 1]).argmax() != y[row]
    moved = result.distance > 0
    shorter = x + 0.97 * (result.x_adv - x)
    assert (net(shorter).argmax(1) == y)[moved].float().mean() > 0.9


def test_a_tie_is_left() -> None:
    x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    model = Linear(torch.eye(4)[:2] * 3)
    assert DeepFool().run(model, x, y).success.all()
    assert DeepFool(norm="linf").run(model, x, y).success.all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_attack_that_the_box_holds_up_gets_there(norm: str) -> None:
    # The steep pixels are used up at once; what is left to the flat ones takes ever smaller plain steps.
    weight = torch.stack([torch.zeros(40), torch.cat([torch.full((20,), 5.0), torch.full((20,), 0.2)])]).double()
    x, y = torch.cat([torch.full((1, 20), 0.99), torch.zeros(1, 20)], 1).double(), torch.tensor([0])
    model = Linear(weight, torch.tensor([0.0, -102.0], dtype=torch.float64))
    result = DeepFool(norm=norm).run(model, x, y)
    assert result.success.all()
    assert result.backwards.item() < 20


def test_memory_of_many_classes() -> None:
    sizes = []

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(300, 48))

        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                sizes.append(0)
                x.register_hook(lambda g: sizes.__setitem__(-1, sizes[-1] + 1))
            return x.flatten(1) @ self.weight.T

    model = Wide()
    with torch.no_grad():  # a net whose boundaries are all equally far, but for the last one, hard to tell apart
        model.weight.mul_(1e-3)
        model.weight[0] += 1
    x = torch.rand(2, 3, 4, 4)
    result = DeepFool(candidates=None, steps=1).run(model, x, torch.zeros(2, dtype=torch.int64))
    assert result.backwards.tolist() == [299, 299]
    assert len(sizes) > 30
    assert max(sizes) <= 9  # gradients held at a time


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_defense_that_stands_where_its_twin_falls(norm: str) -> None:
    class Shifted(nn.Module):
        stochastic = False

        def __init__(self) -> None:
            super().__init__()
            self.real = Linear(torch.stack([torch.zeros(9), torch.ones(9)]), torch.tensor([0.0, -8.0]))
            self.twin = Linear(torch.stack([torch.zeros(9), torch.ones(9)]), torch.tensor([0.0, -4.6]))

        def forward(self, x: Tensor) -> Tensor:
            return self.real(x)

        def attack_view(self) -> nn.Module:
            return self.twin

    result = DeepFool(norm=norm).run(Shifted(), torch.full((2, 9), 0.5), torch.zeros(2, dtype=torch.int64))
    assert result.success.all()
    assert (result.backwards < 20).all()
