"""A figure as a JSON record: what is drawn and printed comes from it alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from parts import all_text, curves_in

from robustlit.figures.stored import Wanted, draw_record, figure_record, load_record, save_record, table_of
from robustlit.results import Evaluation, EvaluationError


def test_a_record_is_drawn_and_printed_without_its_tables(mixed: Evaluation, tmp_path: Path) -> None:
    wanted = [Wanted("minimal", [mixed], "nearest_l2"), Wanted("pgd", [mixed], "pgd")]
    record = figure_record("Figure 1: made up", "l2", [3.0, 5.0, 200.0], wanted, {"claim": "none", "runs": {}})
    file = save_record(record, tmp_path / "figure_1.json")
    assert load_record(file) == json.loads(file.read_text())
    figure = draw_record(load_record(file))
    assert [line.get_linestyle() for line in curves_in(figure)] == ["-", "--"]
    text = all_text(figure)
    assert "Figure 1: made up" in text
    assert "n = 4" in text
    assert "Wilson 95 %." in text
    assert "nets" not in text
    assert "pgd searched L∞" in text
    head, _, minimal, pgd = table_of(load_record(file))
    assert head.startswith("| accuracy, % | n | clean | L2 3 | L2 5 |")
    assert minimal.startswith("| minimal | 4 | 100.0 | 75.0 [30.1, 95.4] | 50.0 [15.0, 85.0] | 0.0 ")
    assert minimal.endswith("| 4.00 | 8.00 | 5 |")
    assert "≤ " in pgd  # PGD searched L-inf: over L2 an upper bound
    assert "not attacked" in pgd
    assert "| never | " in pgd


def test_several_seeds_are_a_mean_and_their_range(table: Callable[..., Evaluation]) -> None:
    seeds = [
        table([(k, "ddn", float("nan"), reach) for k, reach in enumerate(each)], norm="l2")
        for each in ((0.1, 0.2, 0.3, 0.4), (0.1, 0.1, 0.1, 0.4))
    ]
    record = figure_record("t", "l2", [4.0], [Wanted("both", seeds, "ddn")], {})
    (line,) = record["lines"]
    assert line["seconds"] is None
    assert table_of(record)[0].endswith("| passes |")
    text = all_text(draw_record(record))
    assert "n = 4 of each of 2 nets" in text
    assert "Bands: lowest and highest of 2 nets with different seeds." in text
    assert "Wilson" not in text
    mixed = figure_record("t", "l2", [4.0], [Wanted("both", seeds, "ddn"), Wanted("one", seeds[:1], "ddn")], {})
    assert "Bands: Wilson 95 %, of several nets lowest and highest of 2 nets" in all_text(draw_record(mixed))
    for seconds, each in zip((2.5, 4.25), seeds, strict=True):
        each.meta["seconds"] = {"ddn": seconds}
    timed = figure_record("t", "l2", [4.0], [Wanted("both", seeds, "ddn")], {})
    assert timed["lines"][0]["seconds"] == 6.8
    assert [row.split("|")[-2].strip() for row in table_of(timed)] == ["s", "---", "6.8"]
    assert (line["n"], line["runs"]) == (4, 2)
    assert line["at"] == [[0.375, 0.25, 0.5, True]]
    with pytest.raises(EvaluationError, match="different numbers of images"):
        figure_record("t", "l2", [0.2], [Wanted("both", [seeds[0], seeds[1].on([0, 1])], "ddn")], {})


@pytest.mark.parametrize(("text", "message"), [("{}", "no figure"), ("[", "no figure"), (None, "no figure")])
def test_what_is_no_record_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "figure_1.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(EvaluationError, match=message):
        load_record(file)


def test_a_newer_record_is_refused(tmp_path: Path, mixed: Evaluation) -> None:
    record = figure_record("t", "l2", [0.2], [Wanted("a", [mixed], "pgd")], {})
    with pytest.raises(EvaluationError, match="has version 99, this program reads 1"):
        load_record(save_record({**record, "version": 99}, tmp_path / "f.json"))
