"""AttackSweep goes on where a test was stopped, with the same substitute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustlit.attacks import FGSM, Attack
from robustlit.callbacks import AttackSweep
from robustlit.evaluation import Sweep
from robustlit.results import Evaluation
from robustlit.training import blackbox

pytestmark = pytest.mark.faults
ATTACKS: dict[str, Attack] = {"fgsm": FGSM(eps=0.1)}


@pytest.mark.slow
def test_the_substitute_and_the_finished_batches_are_kept(
    run_test: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def sweep(folder: Path | None) -> AttackSweep:
        return AttackSweep(ATTACKS, knowledge=("blackbox", "adaptive"), folder=folder, substitute_images=200)

    whole = sweep(None)
    run_test(whole, inference_mode=False)
    assert whole.evaluation is not None
    attack_batch, calls = Sweep.attack_batch, []

    def watched(self: Sweep, *given: Any) -> Any:
        calls.append(int(given[3][0]))
        if len(calls) == 3:
            raise ZeroDivisionError("stopped on purpose")
        return attack_batch(self, *given)

    monkeypatch.setattr(Sweep, "attack_batch", watched)
    with pytest.raises(ZeroDivisionError):
        run_test(sweep(tmp_path), inference_mode=False)
    assert {file.suffix for file in (tmp_path / "parts").iterdir()} == {".parquet", ".pt"}
    assert Evaluation.load(tmp_path).caveat == "cut short, of 90"
    monkeypatch.setattr(blackbox, "distil", lambda *given, **named: pytest.fail("distilled again"))
    again = sweep(tmp_path)
    run_test(again, inference_mode=False)
    assert len(calls) == 4
    assert "2 of 3 batches were attacked before" in capsys.readouterr().err
    assert again.evaluation is not None
    assert again.seconds_before > 0
    pd.testing.assert_frame_equal(again.evaluation.to_frame(), whole.evaluation.to_frame(), check_exact=True)
    metas = [dict(evaluation.meta) for evaluation in (again.evaluation, whole.evaluation)]
    assert {*metas[0].pop("seconds")} == {*metas[1].pop("seconds")}
    assert metas[0] == metas[1]
    assert not (tmp_path / "parts").exists()
