"""The table of a comparison as CSV and LaTeX."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import made_evaluation

from robustlit.comparison import ComparisonError, compared, write_table
from robustlit.comparison.export import as_csv, as_latex, escaped
from robustlit.results import Evaluation

Make = Callable[..., Path]


def test_csv_has_the_figures_of_the_tables(make: Make, tmp_path: Path) -> None:
    folders = [make(name, range(100), seed=k, config={"seed": k}) for k, name in enumerate(("=1+1", "b"))]
    path = write_table(compared(folders), tmp_path / "t.csv")
    first, second, mean = csv.DictReader(path.read_text().splitlines())
    assert first["run"] == "'=1+1"  # no formula
    worst = Evaluation.load(folders[1]).worst_case(eps=0.3)
    found = [float(second[key]) for key in ("worst_case", "worst_case_low", "worst_case_high")]
    assert found == pytest.approx([float(worst), *worst.interval])
    pgd = Evaluation.load(folders[1]).accuracy(attack="pgd", eps=0.3)
    assert (float(second["pgd"]), second["pgd_norm"], float(second["pgd_eps"])) == (float(pgd), "linf", 0.3)
    assert float(second["nearest_l2_median"]) > 0
    assert (mean["run"], mean["seeds"], mean["clean_low"]) == ("mean of =1+1", "0 1", "")
    assert float(mean["worst_case"]) == pytest.approx((float(first["worst_case"]) + float(second["worst_case"])) / 2)
    with pytest.raises(FileExistsError, match="exists; choose another"):
        write_table(compared(folders), path)
    with pytest.raises(ComparisonError, match=r"must end in \.csv or \.tex"):
        write_table(compared(folders), tmp_path / "t.xls")


def test_paired_differences_follow_the_runs(make: Make, tmp_path: Path) -> None:
    def group(name: str, numbers: range, seeds: range) -> list[Path]:
        return [
            make(f"{name}-seed_{k}", numbers, seed=k + 10 * (name == "b"), config={"seed": k, "recipe": name})
            for k in seeds
        ]

    folders = [*group("a", range(100), range(2)), *group("b", range(100), range(2))]
    found = compared(folders)
    lines = [*csv.DictReader(write_table(found, tmp_path / "t.csv").read_text().splitlines())]
    (apart,) = (line for line in lines if line["run"] == "a minus b")
    worst = [float(Evaluation.load(folder).worst_case(eps=0.3)) for folder in folders]
    assert apart["seeds"] == "0 1"
    assert float(apart["worst_case"]) == pytest.approx(sum(worst[:2]) / 2 - sum(worst[2:]) / 2)
    assert float(apart["worst_case_low"]) < float(apart["worst_case"]) < float(apart["worst_case_high"])
    text = as_latex(found)
    assert f"a minus b & {100 * float(apart['clean']):+.2f}" in text
    assert f"& {100 * float(apart['worst_case']):+.2f} [{100 * float(apart['worst_case_low']):+.2f}, " in text
    assert "Differences are paired" in text
    single = as_latex(compared(folders[:1]))
    assert "minus" not in single
    assert "Differences" not in single


def test_latex_holds_names_as_text_and_figures_in_per_cent(make: Make, tmp_path: Path) -> None:
    folder = make(r"a_b & 50% #1 \input{x}", range(100))
    text = as_latex(compared([folder]))
    accuracy = Evaluation.load(folder).worst_case(eps=0.3)
    assert r"a\_b \& 50\% \#1 \textbackslash{}input\{x\} & " in text
    assert f"{100 * accuracy:.2f} [{100 * accuracy.interval[0]:.2f}, " in text
    assert r"$\ell_\infty$ 0.3 \\" in text
    assert escaped("~^") == r"\textasciitilde{}\textasciicircum{}"
    if shutil.which("pdflatex"):
        head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
        (tmp_path / "t.tex").write_text(f"{head}{text}\\end{{document}}")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_an_attack_does_not_take_the_column_of_another_figure(make: Make, labels: np.ndarray, tmp_path: Path) -> None:
    attacks = {"worst_case": ("linf", (0.1,)), "pgd": ("linf", (0.1, 0.3)), "clean": ("linf", (0.3,))}
    evaluation = made_evaluation(np.arange(40), labels[:40], attacks=attacks)
    (line,) = csv.DictReader(as_csv(compared([make("a", evaluation=evaluation)])).splitlines())
    assert float(line["clean"]) == pytest.approx(float(evaluation.clean_accuracy))
    assert float(line["worst_case"]) == pytest.approx(float(evaluation.worst_case(eps=0.3)))
    own = evaluation.accuracy(attack="worst_case", eps=0.1)
    assert float(line["attack_worst_case"]) == pytest.approx(float(own)) != float(line["worst_case"])
    assert float(line["attack_worst_case_eps"]) == 0.1
    assert float(line["attack_clean"]) == pytest.approx(float(evaluation.accuracy(attack="clean", eps=0.3)))


def test_latex_says_what_a_reader_must_know(make: Make) -> None:
    values = compared([make("a"), make("b", config={"eps": 0.1}, results={"worst_case": {"norm": "linf", "eps": 0.1}})])
    assert values["caveats"]
    lines = as_latex(values).splitlines()
    assert all(f"% {' '.join(caveat.split())}" in lines for caveat in values["caveats"])
