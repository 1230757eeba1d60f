"""A sweep that was stopped goes on where it was, with the table of an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import EOT, FGSM, PGD, Attack, AttackResult, DeepFool
from robustlit.certify import IBP
from robustlit.evaluation import Sweep
from robustlit.evaluation.fingerprint import fingerprint
from robustlit.evaluation.parts import Parts
from robustlit.results import Evaluation

pytestmark = pytest.mark.faults
Digits = tuple[Tensor, Tensor]
SEEN: list[int] = []  # numbers of the examples that `Watched` attacked
STOP: list[int] = []  # at which it stops


@dataclass(frozen=True)
class Watched(Attack):
    """FGSM that notes what it attacks, and stops at an example in STOP."""

    name: ClassVar[str] = "watched"
    error: type[BaseException] = KeyboardInterrupt

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, index: Any = None, **rest: Any) -> AttackResult:
        if {*STOP} & {*index.tolist()}:
            raise self.error("stopped on purpose")
        SEEN.extend(index.tolist())
        return FGSM(eps=0.1).run(model, x, y, index=index, **rest)

    def _search(self, *args: Any) -> Tensor:
        raise NotImplementedError


ATTACKS: dict[str, Attack] = {
    "watched": Watched(), "pgd": PGD(eps=0.1, steps=2), "deepfool": DeepFool(steps=2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forget() -> None:
    SEEN.clear()
    STOP.clear()


@pytest.fixture
def attacked(net: nn.Module, digits: Digits) -> Callable[..., Evaluation]:
    """Evaluate 30 digits in batches of 10."""

    def attacked(**given: Any) -> Evaluation:
        settings: dict[str, Any] = {"attacks": ATTACKS, "grid": {"linf": [0.05, 0.2]}, "batch_size": 10, "seed": 3}
        given = settings | given
        data = given.pop("data", (digits[0][:30], digits[1][:30]))
        return evaluate(given.pop("model", net), data, given.pop("attacks"), **given)

    return attacked


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("parts/*.parquet"))


def settings_of(evaluation: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in evaluation.meta.items() if name != "seconds"}


def test_the_time_of_each_attack_is_known_after_a_stop_too(
    attacked: Callable[..., Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run, certify = FGSM.run, IBP.run

    def slow_attack(*given: Any, **named: Any) -> Any:
        clock[0] += 4.0
        return run(*given, **named)

    def slow_certificate(*given: Any, **named: Any) -> Any:
        clock[0] += 1.5
        return certify(*given, **named)

    monkeypatch.setattr(FGSM, "run", slow_attack)
    monkeypatch.setattr(IBP, "run", slow_certificate)
    given = {"attacks": [FGSM(eps=0.1), DeepFool(steps=2)], "grid": {}, "certificates": [IBP(eps=0.05)]}
    expected = {"fgsm": 12.0, "deepfool": 0.0, "ibp": 4.5}  # of three batches
    assert attacked(**given).meta["seconds"] == pytest.approx(expected)
    both = attacked(**{**given, "knowledge": ["greybox", "adaptive"], "certificates": []})
    assert {*both.meta["seconds"]} == {"fgsm-greybox", "deepfool-greybox", "fgsm", "deepfool"}
    assert both.seconds("fgsm") == pytest.approx(12.0)
    watched = {**given, "attacks": {"watched": Watched()}, "folder": tmp_path}
    STOP.append(25)
    cut = attacked(**watched)
    assert cut.seconds("watched") == pytest.approx(8.0)
    STOP.clear()
    whole = attacked(**watched)
    assert whole.seconds("watched") == pytest.approx(12.0)
    assert whole.seconds("ibp") == pytest.approx(4.5)
    assert Evaluation.load(tmp_path).seconds("watched") == pytest.approx(12.0)
    assert whole.seconds("pgd") is None
    assert whole.on([3, 4]).seconds("watched") is None  # the time is of all the examples


def test_batches_kept_without_times_are_used(attacked: Callable[..., Evaluation], tmp_path: Path) -> None:
    STOP.append(25)
    attacked(folder=tmp_path)
    STOP.clear()
    for file in parts(tmp_path):  # as an older version wrote it
        table = pd.read_parquet(file)
        kept = table.drop(columns="seconds")
        kept.attrs = table.attrs
        file.write_bytes(kept.to_parquet(index=False))
    SEEN.clear()
    whole = attacked(folder=tmp_path)
    assert {*SEEN} == {*range(20, 30)}
    assert whole.n == 30
    assert whole.seconds("watched") is None


def test_finished_batches_are_not_attacked_again(
    attacked: Callable[..., Evaluation], tmp_path: Path, capsys: Any
) -> None:
    whole = attacked()
    STOP.append(25)
    cut = attacked(folder=tmp_path)
    assert (cut.complete, cut.n, len(parts(tmp_path))) == (False, 20, 2)
    assert Evaluation.load(tmp_path).caveat == "cut short, of 30"  # the incomplete table stays readable
    SEEN.clear()
    STOP.clear()
    shares: list[float] = []
    result = attacked(folder=tmp_path, progress=lambda name, share: shares.append(share))
    assert {*SEEN} <= {*range(20, 30)}
    assert SEEN
    assert "2 of 3 batches were attacked before" in capsys.readouterr().err
    assert shares[0] == pytest.approx(1 / 3)
    assert shares[-1] == pytest.approx(1)
    pd.testing.assert_frame_equal(result.to_frame(), whole.to_frame(), check_exact=True)
    assert settings_of(result) == settings_of(whole)
    assert result.digest == Evaluation.load(tmp_path).digest == whole.digest
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_any_end_keeps_the_parts(
    error: type[BaseException], attacked: Callable[..., Evaluation], tmp_path: Path
) -> None:
    attacks = {**ATTACKS, "watched": Watched(error=error)}
    STOP.append(15)
    with pytest.raises(error):
        attacked(attacks=attacks, folder=tmp_path)
    assert len(parts(tmp_path)) == 1
    STOP.clear()
    whole = attacked(attacks=attacks)
    SEEN.clear()
    result = attacked(attacks=attacks, folder=tmp_path)
    assert min(SEEN) >= 10
    pd.testing.assert_frame_equal(result.to_frame(), whole.to_frame(), check_exact=True)


def changed(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(net.parameters()).flatten()[0].add_(1e-3)
    return net


class Shifted(nn.Module):
    """Settings that are no weights count too."""

    def __init__(self, net: nn.Module, shift: float) -> None:
        super().__init__()
        self.net, self.shift = net, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.shift)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"model": changed}),
        ({"model": partial(Shifted, shift=0.0)}, {"model": partial(Shifted, shift=0.1)}),
        ({}, {"attacks": {**ATTACKS, "pgd": PGD(eps=0.1, steps=3)}}),
        ({}, {"attacks": {"other": Watched(), **ATTACKS}}),
        ({}, {"grid": {"linf": [0.05]}}),
        ({}, {"seed": 4}),
        ({}, {"substitute": changed}),
        ({}, {"batch_size": 8}),
        ({}, {"data": lambda x, y: (x.flip(0), y.flip(0))}),
        ({}, {"data": lambda x, y: [(x[:10], y[:10], torch.arange(10) + 1)]}),
        ({}, {"data": lambda x, y: [(x[:10], (y[:10] + 1) % 10, torch.arange(10))]}),
    ],
)
def test_parts_of_another_sweep_are_not_used(
    before: dict[str, Any], after: dict[str, Any], attacked: Callable[..., Evaluation], net: nn.Module, digits: Digits,
    tmp_path: Path, capsys: Any,
) -> None:  # fmt: skip
    attacks = {"watched": ATTACKS["watched"], "pgd": ATTACKS["pgd"]}

    def made(given: dict[str, Any]) -> dict[str, Any]:
        return {"attacks": attacks} | {
            key: value(*((digits[0][:30], digits[1][:30]) if key == "data" else (net,))) if callable(value) else value
            for key, value in given.items()
        }

    STOP.append(25)
    attacked(**made(before), folder=tmp_path)
    left = parts(tmp_path)
    assert len(left) == 2
    STOP.clear()
    SEEN.clear()
    result = attacked(**made(after), folder=tmp_path)
    assert {*SEEN} == {
        *result.table.query("clean")["index"]
    }  # all were attacked, and those kept before are there still
    assert result.complete
    said = capsys.readouterr().err
    if not {"batch_size", "data"} & {*after}:
        assert all(file.exists() for file in left)
        assert f"{tmp_path / 'parts'} holds 2 finished batches of another sweep" in said


def test_another_knowledge_is_another_sweep(net: nn.Module, digits: Digits, tmp_path: Path) -> None:
    def parts_of(*knowledge: str) -> Parts:
        return Parts(Sweep([FGSM(eps=0.1)], knowledge=knowledge), net, tmp_path)

    parts_of("adaptive").attack_batch(digits[0][:5], digits[1][:5], torch.arange(5))
    assert [parts_of(*k).before for k in (("adaptive",), ("greybox",), ("adaptive", "greybox"))] == [1, 0, 0]


def test_parts_on_other_examples_stay(
    attacked: Callable[..., Evaluation], digits: Digits, tmp_path: Path, capsys: Any
) -> None:
    STOP.append(25)
    attacked(folder=tmp_path)
    STOP.clear()
    attacked(folder=tmp_path, data=(digits[0][:10], digits[1][:10]))
    assert len(parts(tmp_path)) == 1
    assert "keeps 1 finished batches of this sweep on other examples" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"PAR1", 0.5, 0.9])
def test_a_damaged_part_is_attacked_again(
    damage: bytes | float, attacked: Callable[..., Evaluation], tmp_path: Path
) -> None:
    STOP.append(25)
    attacked(folder=tmp_path)
    STOP.clear()
    file = parts(tmp_path)[0]
    held = file.read_bytes()
    file.write_bytes(damage if isinstance(damage, bytes) else held[: int(damage * len(held))])
    with pytest.warns(UserWarning, match="is damaged.*attacked again"):
        result = attacked(folder=tmp_path)
    pd.testing.assert_frame_equal(result.to_frame(), attacked().to_frame(), check_exact=True)


def test_a_part_with_a_changed_value_is_attacked_again(net: nn.Module, digits: Digits, tmp_path: Path) -> None:
    kept = Parts(Sweep([FGSM(eps=0.1)]), net, tmp_path)
    batch = (digits[0][:20], digits[1][:20], torch.arange(20))
    expected = kept.attack_batch(*batch)
    (file,) = parts(tmp_path)
    table = pd.read_parquet(file)
    attributes = table.attrs
    table["success"] = True
    table.attrs = attributes
    table.to_parquet(file, index=False)
    with pytest.warns(UserWarning, match="its rows are not those that were written"):
        again = kept.attack_batch(*batch)
    assert all((again[name] == expected[name]).all() for name in ("success", "index", "forwards"))


def test_a_full_disk_does_not_stop_the_sweep(
    attacked: Callable[..., Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robustlit.files.os.fsync", full)
    with pytest.warns(UserWarning, match="could not keep a finished batch.*No space left") as caught:
        result = attacked(folder=tmp_path)
    assert len([w for w in caught if "could not keep" in str(w.message)]) == 1
    pd.testing.assert_frame_equal(result.to_frame(), attacked().to_frame(), check_exact=True)
    assert not [*tmp_path.rglob("*.part")]


@pytest.mark.slow
def test_a_random_model_goes_on_with_the_same_draws(
    attacked: Callable[..., Evaluation], net: nn.Module, tmp_path: Path
) -> None:
    class Noisy(nn.Module):
        stochastic = True

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + 0.1 * torch.randn_like(x))

    settings = {"model": EOT(Noisy(), 2), "attacks": {"watched": Watched(), "pgd": PGD(eps=0.1, steps=2)}}
    whole = attacked(**settings)
    STOP.append(15)
    attacked(**settings, folder=tmp_path)
    STOP.clear()
    torch.rand(7)  # the global generator has moved on
    pd.testing.assert_frame_equal(attacked(**settings, folder=tmp_path).to_frame(), whole.to_frame(), check_exact=True)


def test_the_time_of_earlier_batches_is_counted(net: nn.Module, digits: Digits, tmp_path: Path) -> None:
    sweep, batch = Sweep([PGD(eps=0.1, steps=20)]), (digits[0][:50], digits[1][:50], torch.arange(50))
    started = time.monotonic()
    Parts(sweep, net, tmp_path).attack_batch(*batch)
    spent = time.monotonic() - started
    again = Parts(sweep, net, tmp_path)
    assert (again.before, again.seconds) == (1, 0)
    again.attack_batch(*batch)
    assert 0 < again.seconds <= spent


SCRIPT = """
    import signal, sys, torch
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    from robustlit import evaluate
    from robustlit.attacks import PGD
    from robustlit.data import load_mnist
    from robustlit.models import SmallCNN
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, _, x, y = load_mnist()
    batches = set()
    def done(name, share):  # a line for each finished batch
        if share and (8 * share).is_integer() and share not in batches:
            batches.add(share)
            print(share, flush=True)
    attacks, data = [PGD(eps=0.01, steps=60, restarts=2)], (x[:160].float() / 255, y[:160])
    result = evaluate(SmallCNN(), data, attacks, batch_size=20, progress=done, folder=sys.argv[1])
    print("digest", result.digest)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_goes_on(sent: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script)]
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, check=True)
    folder = tmp_path / "cut"
    with subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.05)  # in the middle of a batch, or of writing it
        os.kill(process.pid, sent)
        process.wait()
    kept = len(parts(folder))
    assert kept in range(2, 8)
    again = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True)
    assert f"{kept} of 8 batches were attacked before" in again.stderr
    assert again.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    assert not (folder / "parts").exists()


class _Setting:
    """A setting of a net that no digest can see."""

    def __init__(self, levels: int) -> None:
        self.levels = levels


class _Quantised(nn.Module):
    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__()
        self.net, self.setting = net, _Setting(levels)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * self.setting.levels).round() / self.setting.levels)


class _Masked(_Quantised):
    """The same with one more class, which it never predicts."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), (0, 1), value=-1e4)


@pytest.mark.parametrize("kind", [_Quantised, _Masked])
def test_batches_of_a_net_that_answers_otherwise_now_are_attacked_again(
    kind: type[_Quantised], attacked: Callable[..., Evaluation], net: nn.Module, tmp_path: Path
) -> None:
    STOP.append(20)
    given: dict[str, Any] = {"attacks": {"watched": Watched()}, "grid": None, "folder": tmp_path}
    attacked(model=kind(net, 64), **given)
    STOP.clear()
    fresh = attacked(model=kind(net, 1), **given | {"folder": None})
    SEEN.clear()
    with pytest.warns(UserWarning, match="is of a net that gave other logits .*: its batch is attacked again"):
        again = attacked(model=kind(net, 1), **given)
    assert min(SEEN) < 10
    pd.testing.assert_frame_equal(again.to_frame(), fresh.to_frame(), check_exact=True)
    STOP.append(20)
    attacked(model=kind(net, 64), **given)
    STOP.clear()
    SEEN.clear()
    attacked(model=kind(net, 64), **given)
    assert min(SEEN) >= 20


def test_hooks_and_a_forward_of_the_instance_are_part_of_a_net(net: nn.Module) -> None:
    plain, hooked, patched = (_Quantised(net, 4) for _ in range(3))
    hooked.register_forward_pre_hook(lambda module, given: (given[0] / 2,))
    patched.forward = lambda x: net(x / 2)  # type: ignore[method-assign]
    blind = _Quantised(net, 4)
    blind.register_full_backward_hook(lambda module, into, out: (into[0] * 0,))
    assert len({fingerprint(each) for each in (plain, hooked, patched, blind)}) == 4
