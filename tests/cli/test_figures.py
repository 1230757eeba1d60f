"""`robustlit figures`, on evaluations made by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from robustlit.results import Check, Evaluation, Verdict

Run = Callable[..., int]


def make_run(
    folder: Path, *, n: int = 30, attacks: tuple[str, ...] = ("pgd", "fgsm"), knowledge: tuple[str, ...] = ("adaptive",)
) -> Path:
    """A run folder that was trained and evaluated, without a checkpoint."""
    draws = np.random.default_rng(len(folder.name))
    parts = []
    for known in knowledge:
        for attack in attacks:
            reach = draws.uniform(0.01, 0.5, n)
            parts.append(
                pd.DataFrame(
                    {
                        "index": np.arange(n), "label": np.arange(n) % 10, "clean": True, "attack": attack,
                        "knowledge": known, "norm": "linf", "eps": 0.3, "success": reach < 0.3, "prediction": 0,
                        "l0": 9.0, "l1": 20 * reach, "l2": 10 * reach, "linf": np.minimum(reach, 0.3),
                        "forwards": 1, "backwards": 1,
                    }
                )
            )  # fmt: skip
    Evaluation(pd.concat(parts), {"complete": True}).save(folder / "evaluation")
    worst = {"norm": "linf", "eps": 0.3, "accuracy": 0.5, "rests_on": list(attacks)}
    results = {"n": n, "clean": {"accuracy": 1.0}, "worst_case": worst, "seconds": {"train": 9.0}, "device": "a CPU"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def written(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.suffix in (".png", ".svg")}


def both(*stems: str) -> set[str]:
    return {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}


def test_a_runs_figures_are_drawn_into_its_evaluation_without_a_checkpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "net")
    monkeypatch.setattr(torch, "load", None)  # no checkpoint is read
    assert run("figures", str(folder)) == 0
    assert written(folder / "evaluation") == both("curves_l2", "curves_linf")
    assert str(folder / "evaluation" / "curves_l2.png") in capsys.readouterr().out.splitlines()
    assert run("figures", str(folder / "evaluation"), "--style", "report", "--out", "drawn") == 0
    assert written(tmp_path / "drawn") == both("curves_l2_report", "curves_linf_report")


def judge(folder: Path, status: str = "FAIL", *, tied: bool = True) -> None:
    checks = [Check(13, "gradient-free does not win", status, "Square alone breaks 9 of 90: try", 0.1, 0.002)]
    found = Verdict(checks, "full", 90, "linf", 0.3, 0, 5, 0.1)
    (found.of(Evaluation.load(folder)) if tied else found).save(folder / "evaluation")


def test_the_verdict_is_drawn_and_stands_in_the_figures(run: Run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "net")
    judge(folder)
    assert run("figures", str(folder), "--style", "report") == 0
    assert written(folder / "evaluation") == both("verdict", "curves_l2_report", "curves_linf_report")
    assert run("figures", str(folder), "--out", "drawn") == 0
    assert written(tmp_path / "drawn") == both("verdict", "curves_l2", "curves_linf")
    for stem in ("curves_l2", "curves_linf"):
        assert (
            "verdict FAIL (full, L∞ 0.3): 1 of 1 checks (Square wins)"
            in (tmp_path / "drawn" / f"{stem}.svg").read_text()
        )
    assert "net: verdict FAIL" in (tmp_path / "drawn" / "verdict.svg").read_text()
    make_run(tmp_path / "other")
    assert run("figures", "net", "other", "--distance", "linf", "--attack", "pgd", "--out", "both") == 0
    assert "net (verdict FAIL)" in (tmp_path / "both" / "models_pgd_linf.svg").read_text()


def test_a_verdict_on_another_table_is_not_shown_and_it_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = make_run(tmp_path / "net"), make_run(tmp_path / "other")
    (folder / "checkpoints").mkdir()
    judge(make_run(tmp_path / "first one"))
    judge(other)
    assert run("figures", str(folder), "--distance", "linf", "--out", "none") == 0
    assert capsys.readouterr().err == ""
    # As where a folder was copied over another one.
    (tmp_path / "first one" / "evaluation" / "verdict.json").rename(folder / "evaluation" / "verdict.json")
    assert run("figures", str(folder), "--distance", "linf", "--out", "alone") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "net: verdict.json judged another table than the one here (of as many examples, with other results); it is not "
        f"shown. Judge it again: robustlit evaluate {folder} --verdict (its figures may differ from those here: there "
        "is no config.yaml that would say how it was attacked)"
    )
    assert written(tmp_path / "alone") == both("curves_linf")
    assert "verdict" not in (tmp_path / "alone" / "curves_linf.svg").read_text()
    assert run("figures", "net", "other", "--distance", "linf", "--attack", "pgd", "--out", "both") == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    svg = (tmp_path / "both" / "models_pgd_linf.svg").read_text()
    assert "other (verdict FAIL)" in svg
    assert "net (verdict FAIL)" not in svg


def test_a_verdict_that_does_not_say_what_it_judged_is_shown_and_that_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "net")
    judge(folder, tied=False)
    assert run("figures", str(folder), "--distance", "linf") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "net: verdict.json does not say which table it judged, as it is of an older version; nothing ties it to these "
        "figures. Judge it again: robustlit evaluate CHECKPOINT --verdict"
    )
    assert written(folder / "evaluation") == both("verdict", "curves_linf")
    assert "verdict FAIL" in (folder / "evaluation" / "curves_linf.svg").read_text()


def test_the_images_in_common_keep_the_verdicts_on_all(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "few", n=12)
    judge(make_run(tmp_path / "net"))
    arguments = ("--intersect", "--distance", "linf", "--attack", "pgd", "--out", "cut")
    assert run("figures", "net", "few", *arguments) == 0
    svg = (tmp_path / "cut" / "models_pgd_linf.svg").read_text()
    assert "net (verdict FAIL)" in svg
    assert "The verdict on net is on all 30 examples." in svg.replace("\n", " ")


def test_a_damaged_verdict_is_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "net")
    (folder / "evaluation" / "verdict.json").write_text('{"status": "PASS"}')
    assert run("figures", str(folder)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "verdict.json is no verdict of this version: it lacks 'checks'; judge the checkpoint again" in line
    assert written(folder / "evaluation") == set()


def test_a_table_alone_is_drawn_with_a_warning_and_a_newer_one_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "net")
    (folder / "evaluation" / "evaluation.json").write_text('{"table": 9}')
    assert run("figures", str(folder)) == 1
    assert "version 9, and this robustlit reads up to 1: update robustlit" in capsys.readouterr().err
    (folder / "evaluation" / "evaluation.json").unlink()
    assert run("figures", str(folder), "--distance", "l2") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: there is no evaluation.json")
    assert "not known whether complete" in (folder / "evaluation" / "curves_l2.svg").read_text()


def test_figures_are_drawn_without_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "net", knowledge=("adaptive", "greybox"))
    judge(folder)
    code = (
        "import sys; from robustlit.cli.figures import figures; "
        f"code = figures([{str(folder)!r}, '--distance', 'linf']); "
        "print(code, [m for m in ('torch', 'pytorch_lightning', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert written(folder / "evaluation") == both("verdict", "curves_linf", "knowledge_pgd_linf", "knowledge_fgsm_linf")


def test_a_defense_has_a_figure_for_each_attack_beside_the_undefended(run: Run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "defense", knowledge=("adaptive", "greybox"), attacks=("pgd", "my/fgsm"))
    make_run(tmp_path / "bare")
    assert run("figures", str(folder), "--distance", "linf", "--out", "alone") == 0
    assert written(tmp_path / "alone") == both("curves_linf", "knowledge_pgd_linf", "knowledge_my_fgsm_linf")
    assert run("figures", str(folder), "--undefended", "bare", "--distance", "linf", "--out", "beside") == 0
    assert written(tmp_path / "beside") == both("curves_linf", "knowledge_pgd_linf")  # the attack that both met
    assert "undefended" in (tmp_path / "beside" / "knowledge_pgd_linf.svg").read_text()
    assert run("figures", "bare", "--attack", "fgsm", "--distance", "l2", "--out", "one") == 0
    assert written(tmp_path / "one") == both("knowledge_fgsm_l2")


def test_several_runs_have_the_undefended_net_beside_them(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "bb"):
        make_run(tmp_path / name, attacks=("pgd", "fgsm", "mim"))
    make_run(tmp_path / "bare")
    drawn = both("models_worst_case_linf", "models_pgd_linf", "models_fgsm_linf", "models_mim_linf", "training_time")
    arguments = ("--undefended", "bare", "--distance", "linf", "--out")
    assert run("figures", "a", "bb", *arguments, "figures") == 0
    assert capsys.readouterr().err == "the undefended net is not in the figures of mim, which it did not meet\n"
    # runs/* has it among the runs: it is drawn once all the same.
    assert run("figures", "a", "bare/evaluation", "bb", *arguments, "again") == 0
    for folder in (tmp_path / "figures", tmp_path / "again"):
        assert written(folder) == drawn
        texts = {file.stem: file.read_text() for file in folder.glob("*.svg")}
        with_it = {stem for stem, text in texts.items() if "<!-- undefended " in text}
        assert with_it == {"models_worst_case_linf", "models_pgd_linf", "models_fgsm_linf", "training_time"}
        assert not any("<!-- bare " in text for text in texts.values())
        assert "2 models and the undefended net under pgd" in texts["models_pgd_linf"]
        assert "2 models under mim" in texts["models_mim_linf"]
    report = ("--style", "report", "--attack", "pgd", "--undefended", "bare", "--distance", "linf", "--out", "report")
    assert run("figures", "a", "bb", *report) == 0
    assert "<!-- undefended -->" in (tmp_path / "report" / "models_pgd_linf_report.svg").read_text()


def test_the_undefended_net_is_not_taken_for_a_run_of_that_name(run: Run, tmp_path: Path) -> None:
    for name in ("a", "undefended", "bare"):
        make_run(tmp_path / name)
    assert run("figures", "a", "undefended", "--undefended", "bare", "--distance", "linf") == 0
    for stem in ("models_pgd_linf", "training_time"):
        svg = (tmp_path / "figures" / f"{stem}.svg").read_text()
        assert "<!-- undefended " in svg
        assert "<!-- the undefended net " in svg


def test_several_runs_share_figures(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "bb", attacks=("fgsm",))
    (tmp_path / "multirun.yaml").touch()
    assert run("figures", "a", "bb", "multirun.yaml", "--distance", "linf") == 0
    assert written(tmp_path / "figures") == both("models_worst_case_linf", "models_fgsm_linf", "training_time")
    assert run("figures", "a", "bb", "--style", "report", "--attack", "fgsm", "--distance", "l2", "--out", "r") == 0
    assert written(tmp_path / "r") == both("models_fgsm_l2_report")


def test_runs_of_other_test_images_are_refused_or_cut(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "bb", n=12)
    assert run("figures", "a", "bb") == 1
    assert "12 of them in common" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
    assert run("figures", "a", "bb", "--intersect", "--distance", "l2") == 0
    assert "drawn on the 12 test images" in capsys.readouterr().err
    assert "n = 12" in (tmp_path / "figures" / "models_pgd_l2.svg").read_text()


def test_two_runs_of_one_name_are_told_apart_and_a_run_without_results_is_left_out(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("x", "y"):
        make_run(tmp_path / place / "net")
    (tmp_path / "y" / "net" / "results.json").unlink()
    assert run("figures", "x/net", "y/net", "--distance", "l2") == 0
    svg = (tmp_path / "figures" / "models_pgd_l2.svg").read_text()
    assert "x/net" in svg
    assert "y/net" in svg
    assert "training_time.png" not in written(tmp_path / "figures")
    assert "not in the figure of training times: y/net: there is no results.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "there is no examples.parquet in"),
        (["a", "nowhere"], "there is no examples.parquet in nowhere"),
        (["a", "--attack", "square"], "a: no attack named 'square' was run; there are pgd, fgsm"),
        (["a", "--style", "raport"], "no figure style 'raport'"),
        (["a", "--undefended", "a"], "--undefended a goes beside another run; name that, too"),
        (["a", "--distance", "l3"], "no distance 'l3'; there are l0, l1, l2, linf"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_run(tmp_path / "a")
    assert run("figures", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_without_a_run_the_usage_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("figures") == 2
    assert "RUN" in capsys.readouterr().err
