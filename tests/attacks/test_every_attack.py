"""What holds for every attack. A new attack is one line in CASES."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import FrozenInstanceError, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit.attacks import Attack, AttackResult, BudgetAttack
from robustlit.attacks.eot import EOT
from robustlit.threat import distance


@dataclass(frozen=True)
class Case:
    """An attack that takes a fraction of a second on a few digits, and what may be asked of it.

    Args:
        module, kind, settings: `robustlit.attacks.MODULE.KIND(**settings)`.
        near: on a linear model it succeeds within this multiple of the least distance; None where it is not made to be
            near.
        thorough: its settings there; its own defaults unless given.
        large: settings changed for one image of 3 x 224 x 224.
        gradients: it needs them.
        flat: it attacks (B, D) and (B, H, W), not only images (B, C, H, W).
    """

    module: str
    kind: str
    settings: dict[str, Any]
    near: float | None = 1.05
    thorough: dict[str, Any] = field(default_factory=dict)
    large: dict[str, Any] = field(default_factory=dict)
    gradients: bool = True
    flat: bool = True

    @property
    def kind_of_attack(self) -> type[Attack]:
        return getattr(importlib.import_module(f"robustlit.attacks.{self.module}"), self.kind)

    @property
    def attack(self) -> Attack:
        return self.kind_of_attack(**self.settings)

    def __str__(self) -> str:
        return f"{self.module}-{self.settings.get('norm', '')}".rstrip("-")


CASES = [
    Case("fgsm", "FGSM", {"eps": 0.1}),
    Case("bim", "BIM", {"eps": 1.5, "norm": "l2", "steps": 4}),
    Case("pgd", "PGD", {"eps": 0.1, "steps": 4, "restarts": 2}),
    Case("mim", "MIM", {"eps": 0.1, "steps": 4}),
    Case("apgd", "APGD", {"eps": 0.1, "steps": 6}),
    Case("apgd", "APGD", {"eps": 1.5, "norm": "l2", "steps": 6, "loss": "dlr", "targets": 2}),
    Case("square", "Square", {"eps": 0.3, "queries": 30}, 1.5, {"queries": 300}, {}, False, False),
    Case("square", "Square", {"norm": "l2", "eps": 2.5, "queries": 30}, 3, {"queries": 300}, {}, False, False),
    Case("deepfool", "DeepFool", {"steps": 8}),
    Case("deepfool", "DeepFool", {"steps": 8, "norm": "linf"}),
    Case("carlini_wagner", "CarliniWagner", {"searches": 2, "steps": 15}),
    Case("ddn", "DDN", {"steps": 15}),
    Case("fab", "FAB", {"steps": 8}),
    Case("fab", "FAB", {"steps": 8, "norm": "linf"}),
    Case("newtonfool", "NewtonFool", {"steps": 15}, near=None),
    Case("jsma", "JSMA", {"gamma": 0.02}, None, {"outputs": "probabilities"}, large={"gamma": 0.0002}),
    Case("nearest_l2", "NearestL2", {"explore": 6, "candidates": 2, "refine": 6, "finish": 6}),
    Case("worst_case", "WorstCase", {"eps": 0.1}, flat=False),
]
each = pytest.mark.parametrize("case", CASES, ids=str)
FIELDS = [entry.name for entry in fields(AttackResult)]
N, WRONG = 8, 2  # examples, and the one that is misclassified to begin with


def quietly(run: Callable[[], AttackResult]) -> AttackResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()


@dataclass
class Batch:
    """Digits as a net sees them (but one), numbered out of order."""

    x: Tensor
    y: Tensor
    index: Tensor

    def run(self, case: Case, model: nn.Module, rows: Tensor | None = None, **options: Any) -> AttackResult:
        """The attack as the table has it; for a target, where it needs one."""
        rows = torch.arange(len(self.x)) if rows is None else rows
        if not case.attack.untargeted:
            options.setdefault("target", (self.y[rows] + 3) % 10)
        options = {"index": self.index[rows], "seed": 5, **options}
        return case.attack.run(model, self.x[rows], self.y[rows], **options)

    def double(self) -> Batch:
        return Batch(self.x.double(), self.y, self.index)

    def reached(self, case: Case, prediction: Tensor) -> Tensor:
        return prediction != self.y if case.attack.untargeted else prediction == (self.y + 3) % 10


@pytest.fixture
def batch(digits: tuple[Tensor, Tensor], net: nn.Module) -> Batch:
    x = digits[0][:N].clone()
    y = net(x).argmax(1)
    y[WRONG] = (y[WRONG] + 7) % 10  # also for the targeted, who ask for y + 3
    return Batch(x, y, torch.arange(N).flip(0) * 3)


def same(found: AttackResult, expected: AttackResult, rows: Tensor | None = None, atol: float = 1e-9) -> None:
    for name in FIELDS:
        want = getattr(expected, name) if rows is None else getattr(expected, name)[rows]
        torch.testing.assert_close(getattr(found, name), want, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# What a result is.


@each
def test_a_result_keeps_its_word(case: Case, net: nn.Module, batch: Batch) -> None:
    attack, given = case.attack, (batch.x.clone(), batch.y.clone(), batch.index.clone())
    generator = torch.get_rng_state()
    result = batch.run(case, net)
    assert torch.equal(torch.get_rng_state(), generator)
    for before, after in zip(given, (batch.x, batch.y, batch.index), strict=True):
        assert torch.equal(before, after)
    assert result.x_adv.shape == batch.x.shape
    assert result.x_adv.dtype == batch.x.dtype
    assert not result.x_adv.requires_grad
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    with torch.no_grad():
        prediction = net(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, batch.reached(case, prediction))
    torch.testing.assert_close(result.distance, distance(result.x_adv, batch.x, attack.norm))
    assert result.finite.all()
    if isinstance(attack, BudgetAttack):
        assert (result.distance <= attack.eps + 1e-6).all()
    others = torch.arange(N) != WRONG
    assert result.success[others].any()
    assert (result.distance[others] > 0).all()  # a failure returns an attempt
    # Who is wrong already: one pass to see it, one to judge.
    assert result.success[WRONG]
    assert torch.equal(result.x_adv[WRONG], batch.x[WRONG])
    assert result.distance[WRONG] == 0
    assert (result.forwards[WRONG], result.backwards[WRONG]) == (2, 0)


@each
def test_alone_in_part_and_in_another_order(case: Case, net: nn.Module, batch: Batch) -> None:
    net, batch = net.double(), batch.double()
    options = {"eps": torch.linspace(0, 2, N).double() * case.attack.eps} if _has_budget(case) else {}

    def run(rows: Tensor) -> AttackResult:
        return batch.run(case, net, rows, **{name: value[rows] for name, value in options.items()})

    whole = run(torch.arange(N))
    assert whole.x_adv.dtype == torch.float64
    for rows in (torch.tensor([0]), torch.tensor([5]), torch.tensor([N - 1]), torch.randperm(N), torch.randperm(N)[:3]):
        same(run(rows), whole, rows)


def _has_budget(case: Case) -> bool:
    return isinstance(case.attack, BudgetAttack)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind_of_attack.targeted], ids=str)
def test_it_is_asked_for_a_class_and_reaches_that(case: Case, net: nn.Module, batch: Batch) -> None:
    target = net(batch.x).topk(2).indices[:, 1]
    options = (
        {"eps": min(case.attack.eps * 2.5, 1.0 if case.attack.norm == "linf" else 9.0)} if _has_budget(case) else {}
    )
    result = batch.run(case, net, target=target, **options)
    assert result.success[torch.arange(N) != WRONG].any()
    assert torch.equal(result.success, result.prediction == target)


# What it leaves as it was, and where it works all the same.


class Tricky(nn.Module):
    """BatchNorm, one of them frozen, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4)
        self.head, self.frozen = nn.Linear(256, 10), nn.BatchNorm1d(10)
        self.norm.running_mean.normal_()
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        z = F.dropout(self.norm(self.conv(x)).relu().flatten(1), 0.5, self.training)
        return self.frozen(self.head(z))


@each
def test_a_net_in_training_comes_back_as_it_was(case: Case, batch: Batch) -> None:
    net = Tricky()
    batch.y = net.eval()(batch.x).argmax(1)
    expected = batch.run(case, net)
    net.train()
    net.frozen.eval()
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    same(batch.run(case, net), expected)
    assert [module.training for module in net.modules()] == [True, True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in (net.head.bias, net.head.weight)] == [False, True]
    assert torch.equal(net.conv.weight.grad, torch.ones_like(net.conv.weight))
    assert net.head.weight.grad is None


@each
@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_it_is_the_same_anywhere(
    around: Callable[[], AbstractContextManager[None]], case: Case, net: nn.Module, batch: Batch
) -> None:
    expected = batch.run(case, net)
    with around():
        inside = Batch(*(value.clone() for value in (batch.x, batch.y, batch.index)))
        found = inside.run(case, net)
    same(found, expected, atol=0)
    assert not found.x_adv.is_inference()


@each
def test_a_seed_repeats_it_and_none_draws_afresh(case: Case, net: nn.Module, batch: Batch) -> None:
    first = batch.run(case, net)
    torch.rand(3)
    same(batch.run(case, net), first, atol=0)
    torch.manual_seed(1)
    free = batch.run(case, net, seed=None)
    torch.manual_seed(1)
    same(batch.run(case, net, seed=None), free, atol=0)


# Models that are unlike a digit net.


def _linear(case: Case, shape: tuple[int, ...], examples: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model of two classes, images, labels, and the distance of each from the boundary in closed form."""
    norm, size = case.attack.norm, int(torch.tensor(shape).prod())
    x = torch.full((examples, *shape), 0.5) + (torch.rand(examples, *shape) - 0.5) * 0.04
    slope = torch.randn(size)
    gains = slope.abs().sort(descending=True).values * 0.48  # of painting a pixel black or white
    lead = {"linf": 0.15 * slope.norm(p=1), "l2": 0.3 * slope.norm(), "l0": gains[:2].sum() * 0.9}[norm]
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(size), slope]))
        model[1].bias.copy_(torch.stack([lead, -0.5 * slope.sum()]))
        logits = model(x)
        y = logits.argmax(1)
    margin = (logits[:, 0] - logits[:, 1]).abs()
    least = margin / slope.norm(p=1) if norm == "linf" else margin / slope.norm()
    return model, x, y, torch.ones(examples) if norm == "l0" else least


@pytest.mark.parametrize(
    ("case", "shape"),
    [(case, shape) for case in CASES for shape in ((2, 4, 4), (32,), (4, 8)) if case.flat or len(shape) == 3],
    ids=str,
)
@pytest.mark.parametrize("examples", [1, 8])
def test_a_linear_model_of_two_classes(case: Case, shape: tuple[int, ...], examples: int) -> None:
    model, x, y, least = _linear(case, shape, examples)
    attack = case.kind_of_attack(norm=case.attack.norm, **case.thorough)
    targets = ([None] if case.attack.untargeted else []) + [1 - y] * case.attack.targeted
    for target in targets:
        if isinstance(attack, BudgetAttack):
            result = attack.run(model, x, y, target=target, seed=0, eps=least * (case.near or 2))
            assert result.success.all()
            assert (result.distance <= least * (case.near or 2) + 1e-6).all()
        else:
            result = attack.run(model, x, y, target=target, seed=0)
            assert result.success.all()
            assert (result.distance >= least * 0.999).all()
            if case.near is not None:
                assert (result.distance <= least * case.near).all()
        assert torch.equal(result.prediction, 1 - y)


@each
@pytest.mark.filterwarnings("ignore:the gradient of")
def test_nothing_moves_a_constant_model_and_nothing_breaks(case: Case, batch: Batch) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) * 0 + torch.arange(10.0)

    batch.y = torch.full((N,), 9)
    for model in (Constant(), EOT(Constant(), 2)):
        result = quietly(lambda model=model: batch.run(case, model))
        assert not result.success.any()
        assert result.prediction.tolist() == [9] * N
        assert result.x_adv.isfinite().all()
        assert result.x_adv.min() >= 0
        assert result.x_adv.max() <= 1
        if not isinstance(model, EOT):
            assert torch.equal(result.success, torch.zeros(N, dtype=torch.bool))


@each
@pytest.mark.parametrize("shift", [-1e3, 1e3], ids=["negative", "positive"])
def test_only_differences_of_logits_count(case: Case, shift: float, net: nn.Module, batch: Batch) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x) + shift

    net, batch = net.double(), batch.double()
    result, expected = batch.run(case, Shifted()), batch.run(case, net)
    assert torch.equal(result.success, expected.success)
    torch.testing.assert_close(result.distance, expected.distance, rtol=1e-3, atol=1e-3)


class SickHere(nn.Module):
    """One digit's logits are no numbers once it has been moved."""

    def __init__(self, net: nn.Module, clean: Tensor, sick: int, value: float) -> None:
        super().__init__()
        self.net, self.clean, self.sick, self.value = net, clean, sick, value

    def forward(self, x: Tensor) -> Tensor:
        far = torch.cdist(x.detach().flatten(1), self.clean.flatten(1))
        bad = (far.argmin(1) == self.sick) & (x.detach() != self.clean[self.sick]).flatten(1).any(1)
        return torch.where(bad.unsqueeze(1) & (torch.arange(10) != 1), self.value, self.net(x))


@each
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_stop_one_example_alone(
    case: Case, value: float, net: nn.Module, batch: Batch
) -> None:
    net, batch, sick = net.double(), batch.double(), 4
    model = SickHere(net, batch.x, sick, value)
    with pytest.warns(UserWarning, match=f"1 of {N} examples got logits that are not finite during {case.attack.name}"):
        result = batch.run(case, model)
    assert result.finite.tolist() == [row != sick for row in range(N)]
    assert not result.success[sick]
    assert result.x_adv.isfinite().all()
    assert result.distance.isfinite().all()
    others = torch.tensor([row for row in range(N) if row != sick])
    expected = batch.run(case, net, others)
    assert expected.success.any()
    for name in FIELDS:
        torch.testing.assert_close(getattr(result, name)[others], getattr(expected, name), rtol=0, atol=1e-9)


@each
def test_what_it_refuses_and_warns_of(case: Case, net: nn.Module, batch: Batch) -> None:
    attack, nothing = case.attack, torch.arange(0)
    with pytest.raises(ValueError, match="the batch is empty"):
        batch.run(case, net, nothing)
    with pytest.raises(ValueError, match="for uint8 use x"):
        Batch((batch.x * 255).byte(), batch.y, batch.index).run(case, net)
    with pytest.raises(ValueError, match="most likely normalised"):
        Batch(batch.x * 2 - 1, batch.y, batch.index).run(case, net)
    if not attack.targeted:
        with pytest.raises(ValueError, match="leave target out"):
            batch.run(case, net, target=(batch.y + 3) % 10)
    if not attack.untargeted:
        with pytest.raises(ValueError, match="needs the class to reach"):
            batch.run(case, net, target=None)
    with pytest.warns(UserWarning, match="Sequential returns probabilities"):
        batch.run(case, nn.Sequential(net, nn.Softmax(1)))


@each
def test_a_model_that_hides_its_gradient_is_not_called_robust(case: Case, net: nn.Module, batch: Batch) -> None:
    class Hides(nn.Module):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return net(x)

    if case.gradients:
        with pytest.raises(ValueError, match=r"Hides gives no gradient .* not thereby robust"):
            batch.run(case, Hides())
    else:
        same(batch.run(case, Hides()), batch.run(case, net), atol=0)


# Defenses, noise, and what they cost.


class Toll(nn.Module):
    """Counts forwards and backwards over all examples."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._backward)
        return self.inner(x)

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Guarded(nn.Module):
    """A classifier that is judged on `real` and differentiated on `twin`."""

    stochastic = False

    def __init__(self, real: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.real, self.twin = real, twin

    def forward(self, x: Tensor) -> Tensor:
        return self.real(x)

    def attack_view(self) -> nn.Module:
        return self.twin

    def undefended(self) -> nn.Module:
        return self.twin


@each
@pytest.mark.parametrize("defended", [False, True], ids=["plain", "defended"])
def test_every_pass_is_counted(case: Case, defended: bool, net: nn.Module, batch: Batch) -> None:
    model = Toll(net)
    result = batch.run(case, Guarded(model, twin := Toll(net)) if defended else model)
    passes = [model.forwards, model.backwards]
    if defended:
        assert model.backwards == 0
        passes = [model.forwards + twin.forwards, twin.backwards]
    if case.attack._starts_at_image and not defended:
        passes[1] -= 1  # the misclassified digit stood idle in the batch of the first gradient
    assert [int(result.forwards.sum()), int(result.backwards.sum())] == passes
    assert (model.backwards + passes[1] > 0) == case.gradients


@each
def test_a_twin_that_falls_is_no_success(case: Case, net: nn.Module, batch: Batch) -> None:
    class Stands(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            near = torch.cdist(z.flatten(1), batch.x.flatten(1)).argmin(1)
            return 8.0 * F.one_hot(y[near], 10) - 4.0

    if not case.gradients:
        pytest.skip("it never sees the twin")
    y = batch.y = net(batch.x).argmax(1)
    result = batch.run(case, Guarded(Stands(), net))
    assert not result.success.any()
    assert torch.equal(result.prediction, batch.y)


@each
def test_a_defense_is_broken_through_its_twin(case: Case, net: nn.Module, batch: Batch) -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net((x * 15).round() / 15)

    result = batch.run(case, model := Guarded(Rounded(), net))
    assert result.success.sum() >= batch.run(case, net).success.sum() - 2  # such fine levels are hardly a defense
    with torch.no_grad():
        assert torch.equal(result.prediction, model(result.x_adv).argmax(1))


@each
def test_a_stochastic_model_is_judged_by_votes(case: Case, net: nn.Module, batch: Batch) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x + 0.03 * torch.randn_like(x))

    model, generator = EOT(Toll(Noisy()), 2), torch.get_rng_state()
    result = batch.run(case, model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [model.model.forwards, model.model.backwards] == [result.forwards.sum(), result.backwards.sum()]
    assert (result.forwards >= 40).all()  # twenty to see whether it needs an attack, twenty to judge
    assert result.success[WRONG]
    with torch.no_grad():
        share = torch.stack([batch.reached(case, Noisy()(result.x_adv).argmax(1)) for _ in range(60)]).float().mean(0)
    assert (share[result.success] > 0.25).all()
    same(batch.run(case, model), result, atol=0)
    assert result.success.sum() >= batch.run(case, net).success.sum() - 2  # so little noise is hardly a defense


# What an attack is.


@each
def test_an_attack_is_a_value(case: Case) -> None:
    attack, kind = case.attack, type(case.attack)
    assert case.attack is not attack
    assert case.attack == attack
    assert hash(case.attack) == hash(attack)
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert eval(repr(attack), {case.kind: kind}) == attack
    assert attack.norm in attack.norms
    assert attack.targeted or attack.untargeted
    assert kind.name == kind.name.lower()
    with pytest.raises(FrozenInstanceError):
        attack.norm = "l2"
    with pytest.raises(ValueError, match=f"norm must be one of .* for {kind.__name__}, got 'l7'"):
        kind(**{**case.settings, "norm": "l7"})
    with pytest.raises(TypeError):
        kind(**case.settings, no_such_thing=1)


_BIG = """
import json, os, resource, sys
from dataclasses import replace
import torch
from torch import nn
sys.path.insert(0, {folder!r})
from test_every_attack import CASES
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten(), nn.Linear(768, 1000))
x = torch.rand(1, 3, 224, 224)
y = net(x).argmax(1)
for case in CASES:
    if not (child := os.fork()):  # whose peak starts at what it holds
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        attack = replace(case.attack, **case.large)
        options = dict() if attack.untargeted else dict(target=(y + 1) % 1000)
        result = attack.run(net, x, y, seed=0, **options)
        assert result.x_adv.isfinite().all()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([str(case), (peak - before) / 2**20]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, case
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")
def test_a_large_image_and_a_thousand_classes_fit() -> None:
    script = _BIG.format(folder=str(Path(__file__).parent))
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    peaks = dict(json.loads(line) for line in ran.stdout.splitlines())
    assert set(peaks) == {str(case) for case in CASES}
    assert max(peaks.values()) < 1, peaks  # GiB beyond what the process held
    assert min(peaks.values()) > 0.5e-3, peaks  # a copy of the image at least, or nothing was measured


@each
def test_looking_less_often_who_is_done_changes_nothing_but_passes(
    case: Case, net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where to look is to wait.
    expected = batch.run(case, net)
    for name in ("ascent", "apgd", "square", case.module):
        module = importlib.import_module(f"robustlit.attacks.{name}")
        if hasattr(module, "check_every"):
            monkeypatch.setattr(module, "check_every", lambda x: 3)
    result = batch.run(case, net)
    for name in ("success", "prediction", "finite"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    torch.testing.assert_close(result.x_adv, expected.x_adv, rtol=0, atol=1e-5)
    assert (result.forwards >= expected.forwards).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each
def test_a_gpu_finds_what_the_cpu_finds(case: Case, net: nn.Module, batch: Batch) -> None:
    expected = batch.run(case, net)
    there = Batch(batch.x.cuda(), batch.y.cuda(), batch.index.cuda())
    result = there.run(case, net.cuda())
    assert result.x_adv.is_cuda
    assert (result.success.cpu() == expected.success).float().mean() >= 0.8  # other kernels, other last bits
    assert 0 <= result.x_adv.min() <= result.x_adv.max() <= 1
