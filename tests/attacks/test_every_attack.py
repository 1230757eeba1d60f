"""The contract of every attack: its result, its independence of the batch, and what it leaves as it was.

A new attack is one line in `cases.CASES`. What every attack does on unusual models: test_every_attack_models.py.
"""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, OTHERS, WRONG, Batch, Case, N, each, each_budget, each_way, same
from torch import Tensor, nn

from robustlit.attacks import BudgetAttack
from robustlit.threat import distance


class InTheBox(nn.Module):
    """A net that only takes images in [0, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        assert x.min() >= 0
        assert x.max() <= 1
        return self.net(x)


@each
def test_a_result_agrees_with_the_model(case: Case, net: nn.Module, batch: Batch) -> None:
    attack, given = case.attack, (batch.x.clone(), batch.y.clone(), batch.index.clone())
    generator = torch.get_rng_state()
    result = batch.run(case, InTheBox(net))
    assert torch.equal(torch.get_rng_state(), generator)
    for before, after in zip(given, (batch.x, batch.y, batch.index), strict=True):
        assert torch.equal(before, after)
    assert result.x_adv.shape == batch.x.shape
    assert result.x_adv.dtype == batch.x.dtype
    assert not result.x_adv.requires_grad
    assert 0 <= result.x_adv.min() <= result.x_adv.max() <= 1
    with torch.no_grad():
        prediction = net(result.x_adv).argmax(1)
    assert torch.equal(result.prediction, prediction)
    assert torch.equal(result.success, batch.reached(case, prediction))
    torch.testing.assert_close(result.distance, distance(result.x_adv, batch.x, attack.norm))
    assert result.finite.all()
    if isinstance(attack, BudgetAttack):
        assert (result.distance <= attack.eps + 1e-6).all()
    assert result.success[OTHERS].any()
    assert (result.distance[OTHERS] > 0).all()  # a failure returns an attempt
    # A misclassified example: one pass to see it, one to judge it.
    assert result.success[WRONG]
    assert torch.equal(result.x_adv[WRONG], batch.x[WRONG])
    assert result.distance[WRONG] == 0
    assert (result.forwards[WRONG], result.backwards[WRONG]) == (2, 0)
    options = {} if attack.untargeted else {"target": batch.target}
    called = attack(net, batch.x, batch.y, index=batch.index, seed=5, **options)
    assert torch.equal(called, result.x_adv)


@each_way
def test_alone_in_part_and_in_another_order(case: Case, targeted: bool, net: nn.Module, batch: Batch) -> None:
    net, batch = net.double(), batch.double()
    options = {"target": batch.target} if targeted else {}
    if isinstance(case.attack, BudgetAttack):
        options["eps"] = torch.linspace(0, 4 if targeted else 2, N).double() * case.attack.eps
        if case.attack.norm == "linf":
            options["eps"].clamp_(max=1)

    def run(rows: Tensor) -> Tensor:
        return batch.run(case, net, rows, **{name: value[rows] for name, value in options.items()})

    whole = run(torch.arange(N))
    assert whole.x_adv.dtype == torch.float64
    assert whole.success[WRONG]
    assert whole.distance[WRONG] == 0
    if "eps" in options:
        assert (whole.distance <= options["eps"] + 1e-6).all()
        assert torch.equal(whole.x_adv[0], batch.x[0])  # without a budget
        assert not whole.success[0]
    for rows in (torch.tensor([0]), torch.tensor([5]), torch.tensor([N - 1]), torch.randperm(N), torch.randperm(N)[:3]):
        same(run(rows), whole, rows)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind_of_attack.targeted], ids=str)
def test_a_targeted_attack_reaches_the_target_and_no_other_class(case: Case, net: nn.Module, batch: Batch) -> None:
    target = net(batch.x).topk(2).indices[:, 1]
    options = {}
    if isinstance(case.attack, BudgetAttack):
        options["eps"] = min(case.attack.eps * 2.5, 1.0 if case.attack.norm == "linf" else 9.0)
    result = batch.run(case, net, target=target, **options)
    assert result.success[OTHERS].any()
    assert torch.equal(result.success, result.prediction == target)
    if options:  # another wrong class is not a success
        short = batch.run(case, net, target=target, eps=case.attack.eps / 100)
        assert short.prediction[WRONG] != batch.y[WRONG]
        assert not short.success.any()


@each_budget
def test_a_budget_given_at_the_call_is_that_of_an_attack_made_for_it(case: Case, net: nn.Module, batch: Batch) -> None:
    net, batch, attack = net.double(), batch.double(), case.attack
    assert isinstance(attack, BudgetAttack)
    own, half = batch.run(case, net), replace(attack, eps=attack.eps / 2)
    same(batch.run(case, net, eps=torch.full((N,), attack.eps)), own, atol=1e-6)
    expected = half.run(net, batch.x, batch.y, index=batch.index, seed=5)
    same(batch.run(case, net, eps=attack.eps / 2), expected)  # its steps scale with the budget


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
def test_a_net_in_training_is_attacked_in_eval_mode_and_left_as_it_was(case: Case, batch: Batch) -> None:
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
def test_the_surrounding_mode_changes_nothing(
    around: Callable[[], AbstractContextManager[None]], case: Case, net: nn.Module, batch: Batch
) -> None:
    expected = batch.run(case, net)
    with around():
        inside = Batch(*(value.clone() for value in (batch.x, batch.y, batch.index)))
        found = inside.run(case, net)
    same(found, expected, atol=0)
    assert not found.x_adv.is_inference()


@each
def test_a_seed_repeats_the_attack_and_no_seed_draws_afresh(case: Case, net: nn.Module, batch: Batch) -> None:
    eps = {"eps": case.attack.eps / 5} if isinstance(case.attack, BudgetAttack) else {}  # most are not broken at once
    first = batch.run(case, net, **eps)
    torch.rand(3)
    same(batch.run(case, net, **eps), first, atol=0)
    for changed in ({"seed": 6}, {"index": batch.index + 1}):
        other = batch.run(case, net, **eps, **changed)
        assert torch.equal(other.x_adv, first.x_adv) != case.random
    torch.manual_seed(1)
    free = batch.run(case, net, seed=None, **eps)
    assert torch.equal(free.x_adv, first.x_adv) != case.random
    torch.manual_seed(1)
    same(batch.run(case, net, seed=None, **eps), free, atol=0)


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
from cases import CASES
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten(), nn.Linear(768, 1000))
x = torch.rand(1, 3, 224, 224)
y = net(x).argmax(1)
for case in CASES:
    if not (child := os.fork()):  # its peak starts at what the parent holds
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
def test_a_large_image_and_a_thousand_classes_fit_in_memory() -> None:
    script = _BIG.format(folder=str(Path(__file__).parent))
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    peaks = dict(json.loads(line) for line in ran.stdout.splitlines())
    assert set(peaks) == {str(case) for case in CASES}
    assert max(peaks.values()) < 1, peaks  # GiB beyond what the process held
    assert min(peaks.values()) > 0.5e-3, peaks  # a copy of the image at least, or nothing was measured


@each
def test_checking_less_often_for_finished_examples_changes_nothing_but_passes(
    case: Case, net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where each check waits for the device.
    net, batch = net.double(), batch.double()
    expected = batch.run(case, net)
    for file in Path(importlib.import_module("robustlit.attacks").__file__).parent.glob("*.py"):
        module = importlib.import_module(f"robustlit.attacks.{file.stem}")
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
