"""The table of a comparison as a file: CSV for other programs, LaTeX (booktabs) for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustlit.checks import budget_text
from robustlit.comparison.runs import ComparisonError
from robustlit.files import write_file
from robustlit.results.intervals import Accuracy

ENDINGS = (".csv", ".tex")
_NORMS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def check_new(path: str | Path) -> None:
    """Raise a ComparisonError unless a file's name says which kind of table it is, a FileExistsError if it exists."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise ComparisonError(f"{path} must end in {' or '.join(ENDINGS)}, which says what kind of table it is")
    if Path(path).exists():
        raise FileExistsError(f"{path} exists; choose another file, or remove it")


def write_table(values: Mapping[str, Any], path: str | Path) -> Path:
    """Write the runs of `page.content`, and the means over seeds, as a table.

    Raises:
        ComparisonError: Another ending than .csv and .tex.
        FileExistsError: The file exists.
    """
    check_new(path)
    return write_file(Path(path), (as_csv if Path(path).suffix.lower() == ".csv" else as_latex)(values))


def as_csv(values: Mapping[str, Any]) -> str:
    """Return one line per run, group of seeds and difference; accuracies in [0, 1] with Wilson 95 % intervals.

    An attack's columns are its accuracy, eps, norm, or, for one without a budget, its median distance; they are
    prefixed with `attack_` if its name is already that of another column (`attack_worst_case`). Of a group the accuracy
    is the mean over the seeds, beside the least and the largest of them; of two runs or groups it is the difference,
    paired, with its 95 % interval (see `seeds.over_seeds`).
    """
    lines = [_of_run(run, values["views"]) for run in values["runs"]]
    lines += [*map(_of_group, _groups(values)), *map(_of_difference, _differences(values))]
    columns = dict.fromkeys(key for line in lines for key in line)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in line.items()} for line in lines)
    return out.getvalue()


def _cell(value: object) -> object:
    """Return a value that a spreadsheet takes for no formula: names come from whoever made the folder."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _groups(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [group for group in (values["seeds"] or {}).get("groups", []) if len(group["seeds"]) > 1]


def _of_run(run: Mapping[str, Any], views: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    budget, verdict = run["budget"] or {}, run["verdict"] or {}
    line = {
        "run": run["name"], "seeds": run["seed"], "recipe": run["recipe"], "method": run["method"], "net": run["net"],
        "n": (run["clean"] or [None, None])[1], "complete": run["complete"], **_accuracy("clean", run["clean"]),
        "norm": budget.get("norm"), "eps": budget.get("eps"), **_accuracy("worst_case", _worst(run)),
        "rests_on": " ".join(run["worst"]["rests_on"]) if run["worst"] else None, "figure": verdict.get("status"),
        **_accuracy("certified", run["certified"]),
    }  # fmt: skip
    for number, found in run["attacks"].items():
        name = views[int(number)]["name"]
        name = f"attack_{name}" if name in line else name  # such as WorstCase: worst_case is that over all attacks
        line |= _accuracy(name, [found["correct"], found["n"]])
        line |= {f"{name}_norm": found["norm"], f"{name}_eps": found["eps"], f"{name}_median": found.get("median")}
    return line | {"passes": run["passes"], **{f"{key}_seconds": value for key, value in run["seconds"].items()}}


def _of_group(group: Mapping[str, Any]) -> dict[str, Any]:
    return _of_several(f"mean of {group['name']}", group, ("least", "largest"))


def _differences(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((values["seeds"] or {}).get("differences", []))


def _of_difference(found: Mapping[str, Any]) -> dict[str, Any]:
    return _of_several(f"{found['a']} minus {found['b']}", found, ("low", "high"))


def _of_several(name: str, found: Mapping[str, Any], ends: Sequence[str]) -> dict[str, Any]:
    """Return a line of the means of several runs, each beside its two `ends`."""
    line: dict[str, Any] = {"run": name, "seeds": " ".join(map(str, found["seeds"]))}
    for title, figure in found["figures"].items():
        key = title.replace(" ", "_")
        line |= {key: figure["mean"], **{f"{key}_{end}": figure[end] for end in ends}}
    return line


def _worst(run: Mapping[str, Any]) -> Sequence[int] | None:
    return [run["worst"]["correct"], run["worst"]["n"]] if run["worst"] else None


def _accuracy(name: str, pair: Sequence[int] | None) -> dict[str, float | None]:
    if pair is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    accuracy = Accuracy(*pair)
    low, high = accuracy.interval
    return {name: float(accuracy), f"{name}_low": low, f"{name}_high": high}


def as_latex(values: Mapping[str, Any]) -> str:
    """Return a tabular of clean, worst-case and certified accuracy in %, with intervals; it needs booktabs.

    Means over seeds and paired differences follow. An overstated worst case is marked by a dagger. Comments above the
    table say what the brackets are.
    """
    certified = any(run["certified"] for run in values["runs"])
    heads = ["run", "clean", "worst case", *(["certified"] if certified else []), "budget"]
    rows = [_latex_row(run, certified) for run in values["runs"]]
    groups = [
        [
            escaped(f"{g['name']}, {len(g['seeds'])} seeds"),
            *(_latex_mean(g["figures"].get(name)) for name in ("clean", "worst case", *["certified"] * certified)),
            "",
        ]
        for g in _groups(values)
    ]
    names = ("clean", "worst case", *["certified"] * certified)
    apart = [
        [escaped(f"{d['a']} minus {d['b']}"), *(_latex_difference(d["figures"].get(name)) for name in names), ""]
        for d in _differences(values)
    ]
    parts = [part for part in (groups, apart) if part]
    body = [*map(_latex_line, rows), *(line for part in parts for line in (r"\midrule", *map(_latex_line, part)))]
    n = len(values["index"])
    note = f"% {n} test images. Brackets: Wilson 95 % intervals; of means over seeds the least and the largest."
    if apart:
        note += "\n% Differences are paired (over common seeds or, of one seed, over the images), with 95 % intervals."
    note += "".join(f"\n% {' '.join(caveat.split())}" for caveat in values["caveats"])
    dagger = "% \\dag: overstated, a check of the verdict says so." if any(map(_overstated, values["runs"])) else None
    return "\n".join(
        part
        for part in (
            note, dagger, rf"\begin{{tabular}}{{l{'r' * (len(heads) - 2)}l}}", r"\toprule", _latex_line(heads),
            r"\midrule", *body, r"\bottomrule", r"\end{tabular}", "",
        )
        if part is not None
    )  # fmt: skip


def _overstated(run: Mapping[str, Any]) -> bool:
    return bool(run["verdict"]) and run["verdict"]["status"] == "overstated"


def _latex_row(run: Mapping[str, Any], certified: bool) -> list[str]:
    dagger = r"$^\dag$" if _overstated(run) else ""
    budget = run["budget"]
    where = f"{_NORMS[budget['norm']]} {budget_text(budget['eps'])}" if budget and run["worst"] else ""
    shown = [_latex_share(run["clean"]), _latex_share(_worst(run)) + dagger]
    cut = f" ({run['clean'][1]} images)" if run["complete"] is False else ""
    return [escaped(run["name"] + cut), *shown, *([_latex_share(run["certified"])] if certified else []), where]


def _latex_share(pair: Sequence[int] | None) -> str:
    if pair is None:
        return "--"
    accuracy = Accuracy(*pair)
    return _percent(float(accuracy), *accuracy.interval)


def _latex_mean(figure: Mapping[str, float] | None) -> str:
    return "--" if figure is None else _percent(figure["mean"], figure["least"], figure["largest"])


def _latex_difference(figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return "--"
    mean, low, high = (None if figure[key] is None else 100 * figure[key] for key in ("mean", "low", "high"))  # type: ignore[operator]
    return f"{mean:+.2f}" if low is None else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def escaped(text: str) -> str:
    """Return text in which LaTeX reads no command."""
    return "".join(_SPECIAL.get(sign, sign) for sign in text)
