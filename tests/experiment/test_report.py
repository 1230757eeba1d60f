"""The printed table holds every number, on a terminal and without."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from robustlit.experiment.report import print_report


def results(**changes: Any) -> dict[str, Any]:
    found = {
        "name": "pgd_adv_train-2",
        "n": 10000,
        "clean": {"accuracy": 0.9904, "interval": [0.98829, 0.99213]},
        "attacks": {
            "fgsm": {"norm": "linf", "eps": 0.3, "accuracy": 0.9712, "interval": [0.9677, 0.9743], "passes": 3.0},
            "a-name-longer-than-most":
                {"norm": "l2", "eps": 2.5, "accuracy": 0.8123, "interval": [0.8045, 0.8198], "passes": 1234.4},
            "nearest":
                {"norm": "l2", "eps": None, "median": 1.2345, "accuracy": 0.0012, "interval": [0, 0.004], "passes": 77},
            "jsma": {"norm": "l0", "eps": None, "median": None, "accuracy": 0.63, "interval": [0.6, 0.66], "passes": 9},
        },
        "worst_case": {"norm": "linf", "eps": 8 / 255, "accuracy": 0.7951, "interval": [0.7871, 0.8029]},
        "seconds": {"train": 93.6, "evaluate": 41.2}, "attack_seconds": {"fgsm": 17.25},
        "device": "Some CPU, 2 threads",
    }  # fmt: skip
    return {**found, **changes}


NUMBERS = [
    "99.04 %", "98.83 - 99.21", "97.12 %", "96.77 - 97.43", "81.23 %", "80.45 - 81.98", "79.51 %", "78.71 - 80.29",
    "linf 0.3", "l2 2.5", "linf 8/255", "1234", "94 s", "41 s",
]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_every_number_is_printed_in_its_row(terminal: bool) -> None:
    out = StringIO()
    print_report(results(), Console(force_terminal=terminal, file=out, width=120, no_color=True))
    text = out.getvalue()
    for expected in (*NUMBERS, "pgd_adv_train-2", "10000 test images", "Some CPU, 2 threads"):
        assert expected in text, expected
    assert "cut short" not in text
    for row in (
        r"clean .*99\.04 %", r"fgsm .*97\.12 %.* 17\.2",
        r"a-name-longer-than-most .*l2 2\.5 .*81\.23 %.* 1234",
        r"nearest .*l2 median 1\.234.* 0\.12 %", r"jsma .*l0 any .*63\.00 %", r"worst case .*79\.51 %",
    ):  # fmt: skip
        assert re.search(row, text), row
    assert ("\x1b" in text or "━" in text) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_an_incomplete_sweep_is_marked_and_names_are_escaped(terminal: bool) -> None:
    out = StringIO()
    attacks = {"pgd[red]": results()["attacks"]["fgsm"]}
    found = results(name="run[bold]1", complete=False, attacks=attacks, device="CPU [0]")
    del found["worst_case"]
    print_report(found, Console(force_terminal=terminal, file=out, width=120, no_color=True))
    text = out.getvalue()
    assert all(part in text for part in ("cut short", "run[bold]1", "pgd[red]", "CPU [0]", "99.04 %"))
    assert "worst" not in text


def test_a_narrow_terminal_shows_every_number() -> None:
    out = StringIO()
    print_report(results(), Console(force_terminal=True, file=out, width=80, no_color=True))
    for expected in NUMBERS:
        assert expected in out.getvalue(), expected


@pytest.mark.parametrize("terminal", [True, False])
def test_figures_of_all_images_stand_beside_those_of_the_first(terminal: bool) -> None:
    out = StringIO()
    attack = results()["attacks"]["fgsm"]
    of_all = {"n": 10000, "clean": {"accuracy": 0.98, "interval": [0.97, 0.99]}, "attacks": {"pgd": attack}}
    print_report(results(n=1000, of=10000, all_images=of_all), Console(force_terminal=terminal, file=out, width=120))
    text = out.getvalue()
    for row in (r"clean, all 10000 .*98\.00 %", r"pgd, all 10000 .*linf 0\.3.*97\.12 %", r"clean .*99\.04 %"):
        assert re.search(row, text), row
    assert "1000 of 10000 test images" in text
    few = StringIO()  # of the split's 10 000 images 41 were tested
    print_report(results(n=20, of=10000, all_images={**of_all, "n": 41, "of": 10000}), Console(file=few, width=120))
    assert "pgd, all 41 tested" in few.getvalue()
    copies = StringIO()
    whole = {**of_all, "n": 9998, "of": 10000, "copies": 2}
    print_report(results(n=20, of=10000, all_images=whole), Console(file=copies, width=120))
    assert "pgd, all 9998 " in copies.getvalue()
    cut = StringIO()
    print_report(results(all_images={**of_all, "n": 30, "complete": False}), Console(file=cut, width=120))
    assert "pgd, 30, cut short" in cut.getvalue()
