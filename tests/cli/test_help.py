"""--help: each command says what it takes, at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from robustlit.cli.main import COMMANDS

Run = Callable[..., int]
# The options that the command's own code reads.
TAKES = {
    "train": ("recipe=", "ckpt_path=", "verdict=", "-m ", "--config-dir", "--cfg"),
    "evaluate": ("--model", "--weights", "--data", "--n ", "--verdict", "--strict", "trust=", "key=value"),
    "compare": ("--out", "--intersect"),
    "figures": ("--out", "--style", "--attack", "--distance", "--undefended", "--intersect"),
    "dashboard": ("--project", "--entity", "--url", "--name", "--attacks", "--runs", "--dry-run"),
    "sync": ("--dry-run",),
    "recipes": ("--config-dir",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_says_what_it_takes(command: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["x", "-h"]):
        assert run(command, *arguments) == 0
        shown = capsys.readouterr()
        assert f"robustlit {command}" in shown.out
        assert not shown.err
        for option in TAKES[command]:
            assert option in shown.out
        assert max(map(len, shown.out.splitlines())) <= 120


def test_the_general_page_names_every_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"robustlit {command}" in shown
    for command in ("evaluate", "compare", "figures", "dashboard", "sync"):
        for option in re.findall(r"--[a-z-]+", " ".join(TAKES[command])):
            assert option in shown
    assert run() == 2
    assert run("figurs", "--help") == 2
    assert "there is no command 'figurs'" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom robustlit.cli.main import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    sys.argv = ['robustlit', command, '--help']\n"
        "    try:\n        main()\n    except SystemExit as e:\n        assert not e.code\n"
        "    assert not {'torch', 'pandas', 'wandb', 'matplotlib'} & {*sys.modules}, command"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
