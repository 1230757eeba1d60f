"""The figure of training times, and the results.json that it is read from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import all_text

from robustlit.figures import TrainedRun, training_time_figure
from robustlit.results import Accuracy, Evaluation, EvaluationError


def write_run(folder: Path, accuracy: float, seconds: dict[str, float], **rest: Any) -> Path:
    folder.mkdir()
    worst = {"norm": "linf", "eps": 0.3, "accuracy": accuracy, "rests_on": ["ensemble"]}
    results = {"n": 200, "clean": {"accuracy": 0.99}, "worst_case": worst, "seconds": seconds, "device": "a CPU"}
    (folder / "results.json").write_text(json.dumps({**results, **rest}))
    return folder


def run_of(name: str, seconds: float, correct: int, **rest: Any) -> TrainedRun:
    given: dict[str, Any] = {"norm": "linf", "eps": 0.3, "rests_on": ("pgd",), "device": "a CPU", **rest}
    return TrainedRun(name, seconds, Accuracy(correct, 200), Accuracy(198, 200), **given)


def test_an_evaluation_takes_the_training_time_of_the_run_it_attacked(tmp_path: Path) -> None:
    trained = write_run(tmp_path / "net", 0.9, {"train": 50.0, "evaluate": 3.0})
    again = write_run(tmp_path / "net-eval", 0.8, {"evaluate": 9.0})
    for given in (trained, "runs/net", trained / "checkpoints" / "best.ckpt"):  # the second from another folder
        (again / "config.yaml").write_text(f"ckpt_path: {given}\n")
        assert TrainedRun.read(again) == TrainedRun(
            "net-eval", 50.0, Accuracy(160, 200), Accuracy(198, 200), "linf", 0.3, ("worst_case",), "a CPU"
        )
    (again / "config.yaml").write_text("ckpt_path: elsewhere/foreign.ckpt\n")
    with pytest.raises(EvaluationError, match="was not trained, and the run that it attacked is not beside it"):
        TrainedRun.read(again)


def test_the_accuracies_are_those_of_the_table(tmp_path: Path, table: Callable[..., Evaluation]) -> None:
    run = write_run(tmp_path / "net", 0.99, {"train": 50.0})
    table([(k, "pgd", 0.3, 0.1 if k < 12 else None) for k in range(20)]).save(run / "evaluation")
    found = TrainedRun.read(run)
    assert (found.accuracy.correct, found.accuracy.n, found.clean, found.rests_on) == (8, 20, 1.0, ("pgd",))


def test_runs_without_a_time_or_a_worst_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no results\.json in .*empty"):
        TrainedRun.read(tmp_path / "empty")
    with pytest.raises(EvaluationError, match="no worst case"):
        TrainedRun.read(write_run(tmp_path / "clean", 0.9, {"train": 1.0}, worst_case=None))
    foreign = write_run(tmp_path / "foreign", 0.9, {})
    (foreign / "results.json").write_text('{"accuracy": 1}')
    with pytest.raises(EvaluationError, match=r"cannot read .*foreign/results\.json"):
        TrainedRun.read(foreign)


def test_a_point_is_a_run_with_its_interval() -> None:
    figure = training_time_figure([run_of("fast", 30, 150), run_of("slow", 90, 180)])
    axes = figure.axes[0]
    full = [line for line in axes.get_lines() if len(line.get_xdata()) == 1 and line.get_fillstyle() == "full"]
    assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in full} >= {(30, 75), (90, 90)}
    low, high = Accuracy(150, 200).interval
    segments = [s for bars in axes.collections for s in bars.get_segments()]
    assert any(np.allclose(s, [(30, 100 * low), (30, 100 * high)]) for s in segments)
    text = all_text(figure)
    for part in ("fast  75.0 %", "slow  90.0 %", "L∞ 0.3", "n = 200", "training time (s)", "over pgd", "a CPU"):
        assert part in text


@pytest.mark.parametrize(
    ("seconds", "unit", "scale"), [((100, 36_000), "h", "log"), ((60, 300), "min", "linear"), ((30, 90), "s", "linear")]
)
def test_unit_and_scale_of_the_axis_fit_the_times(seconds: tuple[float, float], unit: str, scale: str) -> None:
    axes = training_time_figure([run_of("a", seconds[0], 150), run_of("b", seconds[1], 180)]).axes[0]
    assert (axes.get_xlabel(), axes.get_xscale()) == (f"training time ({unit})", scale)


def test_runs_that_cannot_be_compared_are_refused_or_have_a_note() -> None:
    with pytest.raises(EvaluationError, match=r"different budgets .* a at linf 0\.3, b at linf 0\.1"):
        training_time_figure([run_of("a", 1, 150), run_of("b", 1, 150, eps=0.1)])
    with pytest.raises(EvaluationError, match="at least one run"):
        training_time_figure([])
    text = all_text(training_time_figure([run_of("a", 1, 9), run_of("b", 1, 9, rests_on=("fgsm",), device="a GPU")]))
    assert "a: pgd; b: fgsm." in text
    assert "different hardware" in text
