"""docs/report.md against docs/report/*.json, which `robustlit report` and `robustlit explore` wrote."""

import json
import re
from pathlib import Path

import pytest

from robustlit.figures.stored import load_record, table_of

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "report.md").read_text()
RECORDS = {
    file.stem.removeprefix("figure_"): load_record(file) for file in sorted((DOCS / "report").glob("figure_*.json"))
}


def section(heading: str) -> str:
    """Return the text below a heading, up to the next."""
    return TEXT.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("figure", RECORDS)
def test_a_sections_table_and_its_numbers_are_those_of_the_json(figure: str) -> None:
    record, text = RECORDS[figure], section(RECORDS[figure]["title"].partition(":")[0])
    table = table_of(record)
    assert "\n".join(table) in text
    assert f"report/figure_{figure}.png" in text
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    assert unknown(prose, "\n".join([*table, record["claim"], json.dumps(record["runs"])])) == set()


def unknown(prose: str, known: str) -> set[str]:
    """Return the numbers with a decimal, which are measured or the report's own, that are not among the known ones."""
    plain = re.sub(r"`[^`]*`|\(report/[^)]*\)", "", prose)
    return {*re.findall(r"(?<![\w.])\d+\.\d+", plain)} - {*re.findall(r"\d+\.\d+", known)}


def test_the_seconds_of_each_attack_are_those_of_the_json() -> None:
    measured = json.loads((DOCS / "report" / "seconds.json").read_text())
    assert f"`{measured['command']}`" in TEXT
    attacks = ["fgsm", "deepfool", "newtonfool", "bim", "mim", "jsma", "pgd", "carlini_wagner", "nearest_l2"]
    assert sorted(attacks) == sorted(measured["attack_seconds"])
    cells = [f"{measured['attack_seconds'][name]:.0f}" for name in attacks]
    assert f"| here, {measured['n']:,} images | {' | '.join(cells)} |".replace(",0", " 0") in TEXT


def test_the_summary_has_no_number_of_its_own() -> None:
    known = [line for record in RECORDS.values() for line in (*table_of(record), record["claim"], record["title"])]
    assert unknown(section("Summary"), "\n".join(known)) == set()


def test_the_numbers_of_explore_are_those_of_the_json() -> None:
    explored = json.loads((DOCS / "report" / "explore.json").read_text())
    rows = [line for line in section("Section 10").splitlines() if line.startswith("| ")]
    for name, found in explored["neighbours"].items():
        median = {
            key: f"{found[f'median_{key}']:.2f}" for key in ("size", "other", "adversarial_own", "adversarial_taken")
        }
        keys = ("median_size_over_gap", "share_nearer_to_own_class", "share_off_all_training_images")
        way, nearer, off = (f"{100 * found[key]:.0f} %" for key in keys)
        cells = [
            median["size"], median["other"], way, nearer, median["adversarial_own"], median["adversarial_taken"], off
        ]  # fmt: skip
        assert f"| `{name}` | {found['n']} | {' | '.join(cells)} |" in rows
