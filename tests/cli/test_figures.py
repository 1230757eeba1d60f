"""`robustlit figures`, on evaluations made by hand."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustlit.figures import from_folders
from robustlit.results import Check, Evaluation, Verdict

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
LINF = ("--distance", "linf")


@pytest.fixture(autouse=True)
def svg_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write figures as SVG alone, which takes half the time; `save_figure` has its own test."""

    def save(figure: Any, path: Path) -> list[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(f"{path}.svg")
        return [Path(f"{path}.svg")]

    monkeypatch.setattr(from_folders, "save_figure", save)


def make_run(
    folder: Path, *, n: int = 30, attacks: tuple[str, ...] = ("pgd", "fgsm"), knowledge: tuple[str, ...] = ("adaptive",)
) -> Path:
    """A run folder that was trained and evaluated, without a checkpoint."""
    draws = np.random.default_rng(len(folder.name))
    parts = []
    for known, attack in itertools.product(knowledge, attacks):
        reach = draws.uniform(0.01, 0.5, n)
        columns = {
            "index": np.arange(n), "label": np.arange(n) % 10, "clean": True, "attack": attack, "knowledge": known,
            "norm": "linf", "eps": 0.3, "success": reach < 0.3, "prediction": 0, "l0": 9.0, "l1": 20 * reach,
            "l2": 10 * reach, "linf": np.minimum(reach, 0.3), "forwards": 1, "backwards": 1,
        }  # fmt: skip
        parts.append(pd.DataFrame(columns))
    Evaluation(pd.concat(parts), {"complete": True}).save(folder / "evaluation")
    worst = {"norm": "linf", "eps": 0.3, "accuracy": 0.5, "rests_on": list(attacks)}
    results = {"n": n, "clean": {"accuracy": 1.0}, "worst_case": worst, "seconds": {"train": 9.0}, "device": "a CPU"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def judge(folder: Path, status: str = "FAIL", *, tied: bool = True) -> None:
    """Write a verdict into a run folder, tied to its table or, as in older versions, to none."""
    checks = [Check(13, "gradient-free does not win", status, "Square alone breaks 9 of 90: try", 0.1, 0.002)]
    found = Verdict(checks, "full", 90, "linf", 0.3, 0, 5, 0.1)
    (found.of(Evaluation.load(folder)) if tied else found).save(folder / "evaluation")


def written(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.svg")}


def test_the_figures_of_a_run_are_drawn_into_its_evaluation(run: Run, tmp_path: Path, capsys: Capture) -> None:
    folder = make_run(tmp_path / "net")
    assert run("figures", str(folder)) == 0
    assert written(folder / "evaluation") == {"curves_l2", "curves_linf"}
    assert str(folder / "evaluation" / "curves_l2.svg") in capsys.readouterr().out.splitlines()
    assert run("figures", str(folder / "evaluation"), "--style", "report", "--out", "drawn") == 0
    assert written(tmp_path / "drawn") == {"curves_l2_report", "curves_linf_report"}


def test_the_verdict_is_drawn_and_named_in_the_figures(run: Run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "net")
    judge(folder)
    assert run("figures", str(folder), *LINF, "--style", "report") == 0
    assert written(folder / "evaluation") == {"verdict", "curves_linf_report"}
    assert run("figures", str(folder), *LINF, "--out", "drawn") == 0
    title = Verdict.load(folder).title
    assert title.startswith("figure overstated: ")
    assert f"{title} (full, L∞ 0.3): 1 of 1 checks" in (tmp_path / "drawn" / "curves_linf.svg").read_text()
    assert "net: figure overstated" in (tmp_path / "drawn" / "verdict.svg").read_text()


def test_a_verdict_on_another_table_is_not_shown(run: Run, tmp_path: Path, capsys: Capture) -> None:
    folder, other, first = (make_run(tmp_path / name) for name in ("net", "other", "first one"))
    judge(first)
    judge(other)
    (folder / "checkpoints").mkdir()
    (first / "evaluation" / "verdict.json").rename(folder / "evaluation" / "verdict.json")  # as by copying a folder
    assert run("figures", str(folder), *LINF, "--out", "alone") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "net: verdict.json judged another table than the one here (of as many examples, with other results); it is not "
        f"shown. Judge it again: robustlit evaluate {folder} --verdict"
    )
    assert written(tmp_path / "alone") == {"curves_linf"}
    assert "verdict" not in (tmp_path / "alone" / "curves_linf.svg").read_text()
    assert run("figures", "net", "other", *LINF, "--attack", "pgd", "--out", "both") == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    svg = (tmp_path / "both" / "models_pgd_linf.svg").read_text()
    assert "other (overstated)" in svg
    assert "net (overstated)" not in svg


def test_a_verdict_that_names_no_table_is_shown_with_a_note(run: Run, tmp_path: Path, capsys: Capture) -> None:
    folder = make_run(tmp_path / "net")
    judge(folder, tied=False)
    assert run("figures", str(folder), *LINF) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "net: verdict.json does not say which table it judged, as it is of an older version; nothing ties it to these "
        "figures. Judge it again: robustlit evaluate CHECKPOINT --verdict"
    )
    assert "figure overstated" in (folder / "evaluation" / "curves_linf.svg").read_text()


def test_the_images_in_common_keep_the_verdict_on_all(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "few", n=12)
    judge(make_run(tmp_path / "net"))
    assert run("figures", "net", "few", "--intersect", *LINF, "--attack", "pgd", "--out", "cut") == 0
    svg = (tmp_path / "cut" / "models_pgd_linf.svg").read_text()
    assert "net (overstated)" in svg
    assert "The verdict on net is on all 30 examples." in svg.replace("\n", " ")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("verdict.json", '{"status": "PASS"}', "verdict.json is no verdict of this version: it lacks 'checks'; judge"),
        ("evaluation.json", '{"table": 9}', "version 9, and this robustlit reads up to 1: update robustlit"),
    ],
)
def test_a_damaged_or_newer_file_is_one_line(
    run: Run, tmp_path: Path, capsys: Capture, file: str, text: str, message: str
) -> None:
    folder = make_run(tmp_path / "net")
    (folder / "evaluation" / file).write_text(text)
    assert run("figures", str(folder)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert written(folder / "evaluation") == set()


def test_a_table_alone_is_drawn_with_a_warning(run: Run, tmp_path: Path, capsys: Capture) -> None:
    folder = make_run(tmp_path / "net")
    (folder / "evaluation" / "evaluation.json").unlink()
    assert run("figures", str(folder), *LINF) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: there is no evaluation.json")
    assert "not known whether complete" in (folder / "evaluation" / "curves_linf.svg").read_text()


@pytest.mark.slow
def test_figures_are_drawn_without_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "net", knowledge=("adaptive", "greybox"))
    judge(folder)
    code = (
        "import sys; from pathlib import Path; from robustlit.figures import Wanted, draw_folders; "
        f"print(len([*draw_folders([Path({str(folder)!r})], Wanted(['linf']), note=print, judge=str)]), "
        "[m for m in ('torch', 'pytorch_lightning', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "8 []", done.stderr
    assert written(folder / "evaluation") == {"verdict", "curves_linf", "knowledge_pgd_linf", "knowledge_fgsm_linf"}


def test_a_defense_has_a_figure_for_each_attack_with_the_undefended_net(run: Run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "defense", knowledge=("adaptive", "greybox"), attacks=("pgd", "my/fgsm"))
    make_run(tmp_path / "bare")
    assert run("figures", str(folder), *LINF, "--out", "alone") == 0
    assert written(tmp_path / "alone") == {"curves_linf", "knowledge_pgd_linf", "knowledge_my_fgsm_linf"}
    assert run("figures", str(folder), "--undefended", "bare", *LINF, "--out", "beside") == 0
    assert written(tmp_path / "beside") == {"curves_linf", "knowledge_pgd_linf"}  # the attack that both met
    assert "undefended" in (tmp_path / "beside" / "knowledge_pgd_linf.svg").read_text()
    assert run("figures", "bare", "--attack", "fgsm", "--distance", "l2", "--out", "one") == 0
    assert written(tmp_path / "one") == {"knowledge_fgsm_l2"}


@pytest.mark.parametrize("runs", [("a", "bb"), ("a", "bare/evaluation", "bb")])  # runs/* holds the undefended net too
def test_several_runs_are_drawn_with_the_undefended_net(
    run: Run, tmp_path: Path, capsys: Capture, runs: tuple[str, ...]
) -> None:
    for name in ("a", "bb"):
        make_run(tmp_path / name, attacks=("pgd", "mim"))
    make_run(tmp_path / "bare", attacks=("pgd",))
    assert run("figures", *runs, "--undefended", "bare", *LINF) == 0
    assert capsys.readouterr().err == "the undefended net is not in the figures of mim: not run on it\n"
    texts = {file.stem: file.read_text() for file in (tmp_path / "figures").glob("*.svg")}
    beside = {"models_worst_case_linf", "models_pgd_linf", "training_time"}
    assert set(texts) == {*beside, "models_mim_linf"}
    assert {stem for stem, text in texts.items() if "<!-- undefended " in text} == beside
    assert not any("<!-- bare " in text for text in texts.values())
    assert "2 models and the undefended net under pgd" in texts["models_pgd_linf"]
    assert "2 models under mim" in texts["models_mim_linf"]


def test_the_undefended_net_is_not_taken_for_a_run_of_that_name(run: Run, tmp_path: Path) -> None:
    for name in ("a", "undefended", "bare"):
        make_run(tmp_path / name, attacks=("pgd",))
    assert run("figures", "a", "undefended", "--undefended", "bare", *LINF) == 0
    for stem in ("models_pgd_linf", "training_time"):
        svg = (tmp_path / "figures" / f"{stem}.svg").read_text()
        assert "<!-- undefended " in svg
        assert "<!-- the undefended net " in svg


def test_several_runs_share_figures(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "bb", attacks=("fgsm",))
    (tmp_path / "multirun.yaml").touch()
    assert run("figures", "a", "bb", "multirun.yaml", *LINF) == 0
    assert written(tmp_path / "figures") == {"models_worst_case_linf", "models_fgsm_linf", "training_time"}
    assert run("figures", "a", "bb", "--style", "report", "--attack", "fgsm", "--distance", "l2", "--out", "r") == 0
    assert written(tmp_path / "r") == {"models_fgsm_l2_report"}


def test_runs_before_and_after_the_renaming_of_worst_case_share_figures(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "old", attacks=("ensemble",))
    make_run(tmp_path / "new", attacks=("worst_case",))
    assert run("figures", "old", "new", *LINF) == 0
    assert written(tmp_path / "figures") == {"models_worst_case_linf", "models_attack_worst_case_linf", "training_time"}
    assert "ensemble" not in (tmp_path / "figures" / "training_time.svg").read_text()
    assert run("figures", "old", "new", *LINF, "--attack", "ensemble", "--out", "one") == 0
    assert written(tmp_path / "one") == {"models_attack_worst_case_linf"}


def test_runs_of_other_test_images_are_refused_or_cut(run: Run, tmp_path: Path, capsys: Capture) -> None:
    make_run(tmp_path / "a", attacks=("pgd",))
    make_run(tmp_path / "bb", n=12, attacks=("pgd",))
    assert run("figures", "a", "bb") == 1
    assert "12 of them in common" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
    assert run("figures", "a", "bb", "--intersect", "--distance", "l2") == 0
    assert "drawn on the 12 test images" in capsys.readouterr().err
    assert "n = 12" in (tmp_path / "figures" / "models_pgd_l2.svg").read_text()


def test_two_runs_of_one_name_go_by_their_paths_and_one_without_results_is_left_out(
    run: Run, tmp_path: Path, capsys: Capture
) -> None:
    for place in ("x", "y"):
        make_run(tmp_path / place / "net", attacks=("pgd",))
    (tmp_path / "y" / "net" / "results.json").unlink()
    assert run("figures", "x/net", "y/net", "--distance", "l2") == 0
    svg = (tmp_path / "figures" / "models_pgd_l2.svg").read_text()
    assert "x/net" in svg
    assert "y/net" in svg
    assert "training_time" not in written(tmp_path / "figures")
    assert "not in the figure of training times: y/net: there is no results.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "there is no examples.parquet in"),
        (["nowhere"], "there is no examples.parquet in nowhere"),
        (["a", "--attack", "square"], "a: no attack named 'square' was run; there are pgd, fgsm"),
        (["a", "--style", "raport"], "no figure style 'raport'"),
        (["a", "--undefended", "a"], "--undefended a is drawn beside other runs; name at least one"),
        (["a", "--distance", "l3"], "no distance 'l3'; there are l0, l1, l2, linf"),
    ],
)
def test_bad_input_is_one_line(run: Run, tmp_path: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    make_run(tmp_path / "a")
    assert run("figures", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
