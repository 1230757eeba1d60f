"""The figures of the report: what they rest on, and that a finished run is never computed again."""

import json
from pathlib import Path

import pytest

from robustlit.experiment.composition import composed, overridden
from robustlit.experiment.recipes import ConfigError, recipe_files, register_recipes, stored
from robustlit.experiment.reproduction import Reproduction


def test_every_figure_has_runs_lines_and_a_claim(tmp_path: Path) -> None:
    report = Reproduction(tmp_path)
    assert [*report.figures] == ["7", "8", "10", "11", "11b", "14", "17", "18", "9.1"]
    for figure, described in report.figures.items():
        parts = report.parts(figure)
        folders = [part.folder for part in parts]
        assert len({*folders}) == len(folders)
        for place, part in enumerate(parts):  # what a run needs comes before it
            assert all(need.folder in folders[:place] for need in part.needs), part.name
            assert "<" not in part.command, part.command
        assert described["claim"]
        assert described["at"]
    titles = [report.title(figure).partition(":")[0] for figure in ("10", "11b", "9.1")]
    assert titles == ["Figure 10", "Figure 11b", "Section 9.1"]
    assert len(report.parts("11")) == len(report.parts("11b")) == 36  # six nets, three seeds, trained and attacked


@pytest.mark.parametrize("figure", ["10", "11", "11b", "14", "17", "9.1"])
def test_every_command_composes(figure: str, tmp_path: Path) -> None:
    register_recipes(recipe_files())
    for part in Reproduction(tmp_path).parts(figure):
        command, *words = part.words
        if command == "train":
            composed(words)
            continue
        base, *overrides = words  # of a checkpoint that holds the recipe of the run before
        trained = next(need for need in part.needs if str(need.folder) == base)
        config = overridden(stored(composed([w for w in trained.words[1:] if not w.startswith("resume")])), overrides)
        assert config.sweep.attacks, part.command


def test_a_change_reaches_the_folders_of_all_that_come_after(tmp_path: Path) -> None:
    def folders(**settings: object) -> dict[str, str]:
        return {part.name: part.folder.name for part in Reproduction(tmp_path, **settings).parts("18")}  # type: ignore[arg-type]

    plain = folders()
    assert folders() == plain
    fewer = folders(n=20)
    assert {name for name in plain if fewer[name] != plain[name]} == {"plain", "jumprelu_attacked"}
    other = folders(overrides=["trainer.max_epochs=1"])
    assert all(other[name] != plain[name] for name in plain)


def test_a_run_of_ones_own_takes_a_runs_place(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    with pytest.raises(ConfigError, match="there is no finished run at"):
        Reproduction(tmp_path, taken={"base": mine})
    mine.mkdir()
    (mine / "results.json").write_text(json.dumps({"seconds": {}}))
    parts = Reproduction(tmp_path, taken={"base": mine}).parts("18")
    assert parts[0].folder == mine
    assert parts[0].finished
    assert all(not part.finished for part in parts[1:])
    assert str(mine) in parts[1].command
    with pytest.raises(ConfigError, match="no run 'bse' of the report; did you mean base"):
        Reproduction(tmp_path, taken={"bse": mine})
    with pytest.raises(ConfigError, match="no figure '12' of the report; there are 7, 8"):
        Reproduction(tmp_path).parts("12")
