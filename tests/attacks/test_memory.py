"""Where memory does not suffice for a batch, its halves are attacked."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlit import evaluate
from robustlit.attacks import FGSM, PGD, DeepFool
from robustlit.attacks.memory import OutOfMemoryError, Pieces, is_out_of_memory
from robustlit.cli.parser import run_reporting_errors
from robustlit.models import SmallCNN
from robustlit.training import distil
from robustlit.verdict import verdict

pytestmark = pytest.mark.faults
Digits = tuple[Tensor, Tensor]


class Limited(nn.Module):
    """A net whose memory holds a few images."""

    def __init__(self, net: nn.Module, most: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.net, self.most = net, most
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        self.failed = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            self.failed += 1
            raise self.error
        return self.net(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 15.78 GiB total capacity)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 160000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("could not create a memory object"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_every_wording_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_other_errors_are_none_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        Pieces().done(lambda rows: (_ for _ in ()).throw(error), torch.arange(4), "work")


def test_pieces_come_in_order_and_what_fits_is_remembered() -> None:
    sizes: list[int] = []

    def work(rows: Tensor) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise MemoryError
        return rows.tolist()

    pieces = Pieces()
    with pytest.warns(UserWarning, match=r"out of memory in work on 11 images.* pieces of at most 6") as caught:
        first = pieces.done(work, torch.arange(11), "work")
    assert [row for piece in first for row in piece] == [*range(11)]
    assert sizes[:2] == [11, 6]
    assert len(caught) == 1
    sizes.clear()
    second = pieces.done(work, torch.arange(20), "work")
    assert [row for piece in second for row in piece] == [*range(20)]
    assert max(sizes) <= 3


@pytest.mark.slow
def test_the_table_does_not_depend_on_the_split(net: nn.Module, digits: Digits) -> None:
    attacks = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=3), "deepfool": DeepFool(steps=3)}
    data, given = (digits[0][:30], digits[1][:30]), {"grid": {"linf": [0.05]}, "batch_size": 20}
    whole = evaluate(net, data, attacks, **given).to_frame()
    limited = Limited(net, 6)
    with pytest.warns(UserWarning, match="out of memory in") as caught:
        found = evaluate(limited, data, attacks, **given).to_frame()
    said = [str(w.message).split(" on ")[0] for w in caught if "out of memory" in str(w.message)]
    assert sorted(said) == sorted({*said})  # once for each attack
    exact = [name for name in found if found[name].dtype != "float64"]
    pd.testing.assert_frame_equal(found[exact], whole[exact])  # passes too
    pd.testing.assert_frame_equal(found, whole, rtol=1e-4, atol=1e-5)


def test_a_single_image_that_does_not_fit_is_an_error(net: nn.Module, digits: Digits, capsys: Any) -> None:
    data = (digits[0][:4], digits[1][:4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OutOfMemoryError, match=r"single image.*trainer\.accelerator=cpu"):
            evaluate(Limited(net, 0), data, [FGSM(eps=0.1)])

        def command() -> int:
            evaluate(Limited(net, 0), data, [FGSM(eps=0.1)])
            return 0

        assert run_reporting_errors(command) == 1
    assert capsys.readouterr().err.startswith("error: out of memory in the clean images on a single image (CUDA out of")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory."), torch.OutOfMemoryError("CUDA x")]
)
def test_out_of_memory_in_training_is_one_line(error: Exception, capsys: Any) -> None:
    def command() -> int:
        raise error

    assert run_reporting_errors(command) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert "smaller data.batch_size" in said
    assert "trainer.accumulate_grad_batches=2" in said
    assert said.count("\n") == 1


def test_a_verdict_is_made_in_pieces_or_undecided(net: nn.Module, digits: Digits) -> None:
    data, attacks = (digits[0][:40], digits[1][:40]), {"pgd": PGD(eps=0.05, steps=4)}
    evaluation = evaluate(net, data, attacks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = verdict(evaluation, Limited(net, 8), data, attacks)
    undecided = [check.finding for check in found.checks if "memory does not suffice" in check.finding]
    assert 0 < len(undecided) < len(found.checks) - 5
    assert all(check.status for check in found.checks)


def test_distillation_starts_anew_with_smaller_batches(net: nn.Module, digits: Digits) -> None:
    with pytest.warns(UserWarning, match="again with batches of"):
        made = distil(Limited(net, 20), SmallCNN(), digits[0][:100], epochs=1, seed=3)
    assert made.queries >= 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OutOfMemoryError, match="substitute=CHECKPOINT"):
            distil(Limited(net, 0), SmallCNN(), digits[0][:20], epochs=1)


SCRIPT = """
    import resource, sys, torch
    from robustlit import evaluate
    from robustlit.attacks import PGD
    from robustlit.data import load_mnist
    from robustlit.models import MadryCNN
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, _, x, y = load_mnist()
    x, y, net = x[:1500].float() / 255, y[:1500], MadryCNN()
    evaluate(net, (x[:2], y[:2]), [PGD(eps=0.1, steps=1)])
    if sys.argv[1:]:
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]) * 2**20,) * 2)
    result = evaluate(net, (x, y), [PGD(eps=0.1, steps=2)], batch_size=1500)
    print("found", float(result.accuracy(eps=0.1)), float(result.clean_accuracy))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_under_a_limit_of_the_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    whole, limited = (
        subprocess.run([sys.executable, str(script), *limit], capture_output=True, text=True, check=False)
        for limit in ([], ["160"])
    )
    assert "out of memory in" in limited.stderr, limited.stderr
    assert limited.returncode == 0, limited.stderr
    assert "out of memory" not in whole.stderr
    assert limited.stdout == whole.stdout
