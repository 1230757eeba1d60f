"""The page on paper: nothing cut off, nothing over anything else; and what to know before comparing, on screen too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pages import body_of, data_of, needs_a_browser, shown, with_a_script

from robustlit.comparison import compare, write_page
from robustlit.results import Check, Verdict

Make = Callable[..., Path]
# What is cut off or lies over what follows, once all is laid out as for a printer.
MEASURE = """
document.documentElement.dataset.theme = "dark";
window.dispatchEvent(new Event("beforeprint"));
const boxes = [...document.querySelectorAll("#caveats, .wide, #verdicts")];
const seen = (box) => [...box.querySelectorAll("*")].filter((e) => e.checkVisibility());
const inside = (box) => Math.max(0, ...seen(box).map((e) => e.getBoundingClientRect().bottom));
const grave = [...document.querySelectorAll("#caveats li, #verdicts details:has(.fail) li")];
const found = {
  cut: boxes.filter((box) => inside(box) > box.getBoundingClientRect().bottom + 2).map((box) => box.id),
  wide: [...document.querySelectorAll(".wide table")].map((table) => table.getBoundingClientRect().width),
  folded: grave.filter((e) => !e.checkVisibility()).length,
  paper: getComputedStyle(document.documentElement).getPropertyValue("--paper"),
};
document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
"""


def printed(page: str, path: Path) -> dict[str, Any]:
    """A page laid out as for a printer, measured."""
    for_paper = page.replace("@media print", "@media all").replace("@media screen", "@media not all")
    path.write_text(with_a_script(for_paper, MEASURE))
    said = re.search(r'<pre id="found">(.*?)</pre>', shown(path)[0])
    assert said
    found: dict[str, Any] = json.loads(said[1])
    return found


def with_a_verdict(folder: Path, status: str) -> Path:
    checks = [Check(k, f"check {k}", status, "a finding " * 12) for k in range(9)]
    Verdict(checks, "quick", 40, "linf", 0.3, 0, 10, 0.1).save(folder / "evaluation")
    return folder


@needs_a_browser
def test_on_paper_nothing_is_cut_off(make: Make, tmp_path: Path) -> None:
    knowledge = ("adaptive", "greybox", "blackbox")
    folders = [make(f"a run of some name {k}", seed=k, knowledge=knowledge, config={"seed": k}) for k in range(14)]
    for k, folder in enumerate(folders):
        with_a_verdict(folder, "FAIL" if k < 5 else "PASS")
    found = printed(compare(folders), tmp_path / "page.html")
    assert found["cut"] == []
    assert max(found["wide"]) <= 962
    assert found["folded"] == 0
    assert found["paper"].strip() == "#fff"


@needs_a_browser
def test_the_gravest_comes_first_and_what_is_folded_is_counted(make: Make, tmp_path: Path) -> None:
    bad = with_a_verdict(make("bad", seed=1), "FAIL")
    grey = make("grey", knowledge=("greybox",), seed=2)
    others = [make(f"other{k}", config={"eps": e, "data": {"_target_": "MNIST", "image_size": 28 + k}},
                   attacks={"pgd": ("linf", (e,))}) for k, e in enumerate((0.1, 0.2))]  # fmt: skip
    (others[1] / "evaluation" / "evaluation.json").unlink()
    page = compare([*others, grey, bad])
    said = data_of(page)["caveats"]
    assert said[0].startswith("bad: the verdict is FAIL (")
    assert said[1].startswith("grey: no adaptive attack was run.")
    body = body_of(shown(write_page(page, tmp_path / "page.html"))[0])
    section = body.split('id="caveats"')[1].split("</section>")[0]
    first, folded = section.split("<details>")
    assert first.count("<li>") == 6
    assert folded.count("<li>") == len(said) - 6 > 0
    assert f"<summary>{len(said) - 6} more point" in folded


@needs_a_browser
def test_a_few_points_are_not_folded(make: Make, tmp_path: Path) -> None:
    page = compare([make("a"), make("b", seed=1, config={"eps": 0.1})])
    section = (
        body_of(shown(write_page(page, tmp_path / "page.html"))[0]).split('id="caveats"')[1].split("</section>")[0]
    )
    assert section.count("<li>") == len(data_of(page)["caveats"])
    assert "<details>" not in section
