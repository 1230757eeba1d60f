"""The program: help at once, errors in one line, any order of flags and words, readers that stop early."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import robustlit
from robustlit.cli.main import COMMANDS, program

Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
# What the page of each command must name.
TAKES = {
    "train": ("recipe=", "ckpt_path=", "verdict=", "-m ", "--config-dir", "--cfg"),
    "evaluate": ("--model", "--weights", "--data", "--n ", "--verdict", "--strict", "trust=", "key=value"),
    "compare": ("--out", "--intersect"),
    "figures": ("--out", "--style", "--attack", "--distance", "--undefended", "--intersect"),
    "explore": ("--example", "--n ", "--pairs", "--out", "trust=", "key=value"),
    "report": ("--n ", "--few", "--take", "--out", "--redraw", "key=value"),
    "export": ("--format", "--out", "trust="),
    "dashboard": ("--project", "--entity", "--url", "--name", "--attacks", "--runs", "--dry-run"),
    "sync": ("--dry-run",),
    "recipes": ("--config-dir",),
}


def test_the_version_is_printed(run: Run, capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"robustlit {robustlit.__version__}\n"


def test_dir_lists_what_there_is() -> None:
    listed = dir(robustlit)
    assert {"evaluate", "Evaluation", "attacks", "data", "__version__"} <= {*listed}
    assert all(hasattr(robustlit, name) for name in listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_lists_what_it_takes(command: str, run: Run, capsys: Capture) -> None:
    for arguments in (["--help"], ["x", "-h"]):
        assert run(command, *arguments) == 0
        shown = capsys.readouterr()
        assert f"robustlit {command}" in shown.out
        assert not shown.err
        for option in TAKES[command]:
            assert option in shown.out
        assert max(map(len, shown.out.splitlines())) <= 120


def test_the_general_page_names_every_command(run: Run, capsys: Capture) -> None:
    assert run("--help") == 0
    page = capsys.readouterr().out
    assert all(re.search(rf"^ +{command}\b", page, re.MULTILINE) for command in COMMANDS)
    assert run() == 2
    assert capsys.readouterr().out == page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "there is no command 'trian'; did you mean train? there are train, evaluate, compare, figures, "),
        ("figurs --help", "there is no command 'figurs'"),
        ("--bogus", "unrecognized arguments: --bogus"),
        ("train --cgf job recipe=standard", "there is no flag --cgf; did you mean --cfg?"),
        ("train --cfg job", "which recipe? add recipe=NAME; there are advgan, "),
        ("train recipe=standard --cfg jib", "--cfg is one of 'job', 'hydra', 'all', got 'jib'"),
        ("sync --force", "there is no flag --force; there are --dry-run"),
        ("evaluate runs/a --verdict=long", "there is no flag --verdict=long; did you mean --verdict=full?"),
        ("dashboard --runs", "--runs needs a value"),
        ("figures", "RUN is missing"),
        ("recipes x", "'x' is one argument too many"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(
    arguments: str, message: str, run: Run, capsys: Capture
) -> None:
    assert run(*arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_flags_and_words_come_in_any_order(run: Run, capsys: Capture) -> None:
    pages = []
    for words in ("recipe=standard --cfg job eps=.2 -p data", "--package=data eps=.2 -c job recipe=standard"):
        assert run("train", *words.split()) == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    assert "robustlit.data.MNIST" in pages[0]


@pytest.mark.slow
def test_help_and_recipes_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom robustlit.cli.main import COMMANDS, main\n"
        "def check(command, *arguments, heavy=('torch', 'pandas', 'wandb', 'matplotlib')):\n"
        "    sys.argv = ['train.py', *arguments]\n"
        "    try:\n        main(command)\n    except SystemExit as e:\n        assert not e.code\n"
        "    assert not {*heavy} & {*sys.modules}, arguments\n"
        "for command in COMMANDS:\n    check(None, command, '--help')\n"
        "check('train', '--help')\ncheck(None, 'recipes', heavy=['torch'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: python train.py recipe=NAME" in done.stdout
    assert re.search("^pgd_adv_train  ", done.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "left"),
    [
        (["-m", "robustlit", "recipes"], ""),
        ([str(ROOT / "train.py"), "recipe=standard", "data.train_size=200", "data.val_size=50", "data.test_size=60",
          "model=small_cnn", "sweep=none", "trainer.max_epochs=1", "validation_attack.steps=1", "logger=none"],
         "runs/standard/results.json"),
    ],
    ids=["recipes", "train"],
)  # fmt: skip
def test_a_reader_that_stops_early_is_no_error_and_costs_no_results(
    command: list[str], left: str, tmp_path: Path
) -> None:
    script = f"{shlex.join([sys.executable, *command])} | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}  # bash warns of a locale that is not installed
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert left or not done.stderr
    assert (tmp_path / left).exists()


def printed_commands() -> list[str]:
    """Return the commands of this program that README and docs print in blocks, without their comments."""
    commands: set[str] = set()
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text().replace("\\\n", " ")
        found = re.findall(r"^    (?:.*&& )?((?:robustlit [a-z]|python train\.py ).*)", text, re.MULTILINE)
        commands |= {re.split(r" {2,}#| # | -> ", command)[0].strip() for command in found}
    return sorted(commands)


@pytest.mark.parametrize("command", printed_commands())
def test_every_printed_command_can_be_read(command: str) -> None:
    words = shlex.split(command.removeprefix("python ").replace("train.py", "robustlit train"))
    assert program()[1][words[1]].parse(words[2:])
