"""MIM: the velocity, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustlit.attacks import BIM, MIM


class Field(nn.Module):
    """Two logits (margin, 0) with a slope chosen by hand: `slope` (B, D) of the images, far from any boundary."""

    def __init__(self, slope: Callable[[Tensor], Tensor], margin: float = 50.0) -> None:
        super().__init__()
        self.slope, self.margin = slope, margin
        self.visited: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.visited.append(x.detach().clone())
        flat = x.flatten(1)
        score = torch.full_like(flat[:, 0], self.margin)
        if x.requires_grad:
            score = score - (self.slope(flat.detach()) * (flat - flat.detach())).sum(1)
        return torch.stack([score, torch.zeros_like(score)], 1)


def _path(model: Field, attack: MIM, x: Tensor, maximise: bool) -> list[Tensor]:
    """The iterates, flat: (steps + 1) of (B, D); the log odds of two logits have the slope of their difference."""
    model.visited.clear()
    if maximise:
        visited = [attack.maximise(model, x, lambda logits: logits[:, 1] - logits[:, 0])]
        visited = model.visited + visited
    else:
        attack.run(model, x, torch.zeros(len(x), dtype=torch.int64))
        visited = model.visited[:-1]  # the image is judged and differentiated in one pass; the last judges the result
    return [z.flatten(1) for z in visited]


def _far(x: Tensor) -> Tensor:
    """A slope that turns with the place, so that each of three steps sees another."""
    return torch.stack([1 - 8 * (x[:, 0] - 0.5), 0.2 + 0 * x[:, 1], 30 * (x[:, 2] - 0.55), -x[:, 0]], 1)


@pytest.mark.parametrize("maximise", [False, True], ids=["search", "maximise"])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_three_steps_by_hand(norm: str, decay: float, maximise: bool) -> None:
    x = torch.full((2, 4), 0.5)
    x[1, 0] = 0.62
    size, eps = 0.1, 0.25
    model = Field(_far)
    path = _path(model, MIM(eps=eps, norm=norm, steps=3, step_size=size, decay=decay), x, maximise)
    assert len(path) == 4
    for i in range(2):
        z, velocity = x[i].tolist(), [0.0] * 4
        for step in range(3):
            slope = _far(torch.tensor([z]))[0].tolist()
            l1 = sum(abs(s) for s in slope)
            velocity = [decay * v + s / l1 for v, s in zip(velocity, slope, strict=True)]
            if norm == "linf":
                move = [math.copysign(size, v) if v else 0.0 for v in velocity]
                z = [min(max(a + m, o - eps), o + eps) for a, m, o in zip(z, move, x[i].tolist(), strict=True)]
            else:
                length = math.sqrt(sum(v * v for v in velocity))
                delta = [a + size * v / length - o for a, v, o in zip(z, velocity, x[i].tolist(), strict=True)]
                shrink = min(1.0, eps / math.sqrt(sum(d * d for d in delta)))
                z = [o + shrink * d for o, d in zip(x[i].tolist(), delta, strict=True)]
            torch.testing.assert_close(path[step + 1][i], torch.tensor(z), rtol=0, atol=1e-6)


@pytest.mark.parametrize("maximise", [False, True], ids=["search", "maximise"])
def test_the_sign_is_taken_after_the_gradients_are_added_up(maximise: bool) -> None:
    # Slopes 1, -0.2, -0.2 in the first pixel: its sum stays positive. Signs added up would turn at the third step.
    steps = iter([1.0, -0.2, -0.2])

    def slope(x: Tensor) -> Tensor:
        return torch.tensor([[s := next(steps), 1 - abs(s)]]).expand(len(x), 2)

    path = _path(Field(slope), MIM(eps=0.4, steps=3, step_size=0.1), torch.full((1, 2), 0.5), maximise)
    torch.testing.assert_close(torch.stack(path)[1:, 0, 0], torch.tensor([0.6, 0.7, 0.8]))


@pytest.mark.parametrize("maximise", [False, True], ids=["search", "maximise"])
def test_each_example_has_its_own_norm(maximise: bool) -> None:
    # With the norm of the batch, the second gradient of the weak example could not turn its velocity.
    def slope(x: Tensor) -> Tensor:
        turned = torch.where(x[:, :1] > 0.55, -2.0, 1.0)  # back, and twice as far, after the first step
        return turned * torch.tensor([[1.0, 0.0], [1e-6, 0.0]])[: len(x)] + torch.tensor([[0.0, 1e-9]])

    attack = MIM(eps=0.4, steps=3, step_size=0.1, decay=0.6)
    both = _path(Field(slope), attack, torch.full((2, 2), 0.5), maximise)
    for z in both:
        torch.testing.assert_close(z[0, 0], z[1, 0])
    alone = _path(Field(slope), attack, torch.full((1, 2), 0.5), maximise)
    for one, two in zip(alone, both, strict=True):
        assert torch.equal(one[0], two[0])
    torch.testing.assert_close(torch.stack(both)[1:, 0, 0], torch.tensor([0.6, 0.5, 0.6]))


@pytest.mark.filterwarnings("ignore:the gradient of")
@pytest.mark.parametrize("maximise", [False, True], ids=["search", "maximise"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_zero_adds_nothing(norm: str, maximise: bool, dtype: torch.dtype) -> None:
    def slope(x: Tensor) -> Tensor:  # the first example never has a slope, the second only at its start
        return torch.stack([torch.zeros(2), (x[1] <= 0.5).all() * torch.tensor([1.0, 0.5])]).to(dtype)

    x = torch.full((2, 2), 0.5, dtype=dtype)
    path = _path(Field(slope), MIM(eps=0.4, norm=norm, steps=4, step_size=0.05), x, maximise)
    for z in path:
        assert z.isfinite().all()
        assert torch.equal(z[0], x[0])
    along = torch.stack(path)[:, 1, 0]
    assert (along.diff() > 0.03).all()  # it goes on by its momentum, at the same length
    dead = Field(lambda x: torch.zeros_like(x))
    assert torch.equal(_path(dead, MIM(eps=0.4, norm=norm), x, maximise)[-1], x)


@pytest.mark.parametrize("scale", [1e-41, 1e-30, 1e-6, 1e6, 1e30])
def test_no_scale_of_the_gradient_is_lost(scale: float) -> None:
    model = Field(lambda x: _far(x) * scale, margin=0.0)  # without a margin, that would swallow the smallest
    for norm in ("linf", "l2"):
        attack = MIM(eps=0.3, norm=norm, steps=3)
        expected = attack.maximise(Field(_far), torch.full((1, 4), 0.5), lambda z: z[:, 1] - z[:, 0])
        found = attack.maximise(model, torch.full((1, 4), 0.5), lambda z: z[:, 1] - z[:, 0])
        if scale > 1e-38:  # below the smallest normal number there is no direction left
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert found.isfinite().all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_decay_it_is_bim(norm: str, net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:30].double(), digits[1][:30]
    net, eps = net.double(), 0.1 if norm == "linf" else 1.5
    bim, mim = BIM(eps=eps, norm=norm, steps=6), MIM(eps=eps, norm=norm, steps=6, decay=0)
    for target in (None, (y + 1) % 10):
        expected, found = (attack.run(net, x, y, target=target) for attack in (bim, mim))
        torch.testing.assert_close(found.x_adv, expected.x_adv, rtol=0, atol=1e-9)
        assert torch.equal(found.success, expected.success)
        assert torch.equal(found.backwards, expected.backwards)
    moved = [attack.maximise(net, x, lambda logits: -logits[:, 0]) for attack in (bim, mim)]
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-9)
    assert not torch.allclose(MIM(eps=eps, norm=norm, steps=6).maximise(net, x, lambda z: -z[:, 0]), moved[0])


def test_the_papers_setting() -> None:
    assert (MIM().decay, MIM().steps, MIM().step_size, MIM().eps) == (1.0, 10, None, 0.3)
