"""Broken run folders: every command leaves them out with a line, and fails only when nothing is left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from robustlit.figures import from_folders
from robustlit.results import Check, Evaluation, EvaluationError, Verdict
from robustlit.training import CheckpointError, load_classifier, read_checkpoint
from robustlit.training.checkpoint import check_resumable

pytestmark = pytest.mark.faults
Run = Callable[..., int]
Capture = pytest.CaptureFixture[str]
FILES = ("results.json", "config.yaml", "evaluation/examples.parquet", "evaluation/evaluation.json",
         "evaluation/verdict.json")  # fmt: skip


@pytest.fixture(autouse=True)
def _few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing to disk: which runs are drawn is the question here."""
    monkeypatch.setattr(from_folders, "save_figure", lambda figure, path: [path])


def made(folder: Path, n: int = 12) -> Path:
    """A run folder as a training leaves it."""
    reach = np.random.default_rng(n).uniform(0.01, 0.5, n)
    columns = {
        "index": np.arange(n), "label": np.arange(n) % 10, "clean": True, "attack": "pgd", "knowledge": "adaptive",
        "norm": "linf", "eps": 0.3, "success": reach < 0.3, "prediction": 0, "l0": 9.0, "l1": 20 * reach,
        "l2": 10 * reach, "linf": np.minimum(reach, 0.3), "forwards": 1, "backwards": 1,
    }  # fmt: skip
    evaluation = Evaluation(pd.DataFrame(columns), {"complete": True, "attacks": {"pgd": "PGD()"}, "seed": 0})
    evaluation.save(folder / "evaluation")
    checks = [Check(13, "gradient-free does not win", "FAIL", "Square alone breaks 9", 0.1, 0.002)]
    Verdict(checks, "full", n, "linf", 0.3, 0, 5, 0.1).of(evaluation).save(folder / "evaluation")
    share = {"accuracy": 0.5, "interval": [0.4, 0.6]}
    results = {
        "recipe": "standard", "name": folder.name, "data": "MNIST", "n": n, "seed": 0, "parameters": 10, "clean": share,
        "complete": True, "attacks": {"pgd": {"norm": "linf", "eps": 0.3, **share, "passes": 3.0}},
        "worst_case": {"norm": "linf", "eps": 0.3, **share, "rests_on": ["pgd"]},
        "seconds": {"train": 9.0, "evaluate": 2.0}, "versions": {"python": "3"}, "device": "a CPU",
    }  # fmt: skip
    config = {
        "recipe": "standard", "name": folder.name, "run_dir": str(folder), "eps": 0.3, "norm": "linf", "seed": 0,
        "model": {"_target_": "robustlit.models.SmallCNN", "width": 1.0}, "ckpt_path": "runs/other",
        "data": {"_target_": "robustlit.data.MNIST", "test_size": n},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record = folder / "wandb" / "offline-run-20260101_000000-aaa" / "run-aaa.wandb"
    record.parent.mkdir(parents=True)
    record.write_bytes(b":W&B\x00\x00" + bytes(200))
    os.utime(record, (1, 1))
    return folder


def nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def only_started(folder: Path) -> None:
    shutil.rmtree(folder / "evaluation")
    (folder / "results.json").unlink()
    (folder / "checkpoints").mkdir()


def only_parts(folder: Path) -> None:
    only_started(folder)
    (folder / "evaluation" / "parts").mkdir(parents=True)
    (folder / "evaluation" / "parts" / "a-b.parquet").write_bytes(b"PAR1")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("hydra: {}")


def a_dangling_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.with_name("gone"))


def a_loop(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def a_table_that_is_a_folder(folder: Path) -> None:
    table = folder / "evaluation" / "examples.parquet"
    table.unlink()
    table.mkdir()
    (folder / "results.json").unlink()


def a_table_with(**columns: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "evaluation" / "examples.parquet"
        table = pd.read_parquet(file)
        for name, value in columns.items():
            table = table.drop(columns=name) if value is None else table.assign(**{name: value})
        table.to_parquet(file)

    return change


def text_of(file: str, text: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(text.encode() if isinstance(text, str) else text)

    return change


SKIPPED_BY_BOTH = {
    "nothing in it": nothing, "only started": only_started, "only parts": only_parts, "a file": a_file,
    "a dangling link": a_dangling_link, "a loop": a_loop, "a folder for a table": a_table_that_is_a_folder,
    "an empty table": text_of("evaluation/examples.parquet", b""),
    "half a table": text_of("evaluation/examples.parquet", b"PAR1abc"),
    "no eps": a_table_with(eps=None), "text for eps": a_table_with(eps="much"),
    "numbers for attacks": a_table_with(attack=3),
    "no rows": lambda folder: Evaluation(Evaluation.load(folder).table.iloc[:0], {}).save(folder / "evaluation"),
    "a newer table": text_of("evaluation/evaluation.json", '{"table": 99}'),
    "half a description": text_of("evaluation/evaluation.json", '{"table": 1, "comp'),
    "a description of another type": text_of("evaluation/evaluation.json", "[1, 2]"),
    "half a verdict": text_of("evaluation/verdict.json", '{"checks": ['),
    "a verdict of another type": text_of("evaluation/verdict.json", "3"),
}  # fmt: skip
SKIPPED_BY_COMPARE = {
    "half of results.json": text_of("results.json", '{"name": "a"'),
    "results.json of another type": text_of("results.json", "[]"),
    "empty results.json": text_of("results.json", ""), "deep results.json": text_of("results.json", "[" * 100_000),
    "half a config": text_of("config.yaml", "a: [1,"), "a config of another type": text_of("config.yaml", "- 1"),
    "a strange tag": text_of("config.yaml", "a: !!bool maybe"), "no UTF-8": text_of("config.yaml", b"a: \xff\xfe"),
}  # fmt: skip


@pytest.mark.parametrize("fault", [*SKIPPED_BY_BOTH, *SKIPPED_BY_COMPARE])
def test_a_broken_folder_is_left_out_with_a_line(fault: str, run: Run, tmp_path: Path, capsys: Capture) -> None:
    good, broken = made(tmp_path / "runs" / "good"), made(tmp_path / "runs" / "broken")
    (SKIPPED_BY_BOTH | SKIPPED_BY_COMPARE)[fault](broken)
    capsys.readouterr()
    commands = ("compare", "figures") if fault in SKIPPED_BY_BOTH else ("compare",)
    for command in commands:
        assert run(command, str(good), str(broken)) == 0, capsys.readouterr().err
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
        assert len(said) == 1, said
        assert "broken" in said[0]
        assert run(command, str(broken)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert run(command, str(broken), str(tmp_path / "nowhere")) == 1
        assert "error: none of these 2 folders" in capsys.readouterr().err.splitlines()[-1]


def test_sync_leaves_out_what_holds_no_run(run: Run, tmp_path: Path, capsys: Capture) -> None:
    good = made(tmp_path / "runs" / "good")
    empty, file, link = (tmp_path / "runs" / name for name in ("empty", "multirun.yaml", "link"))
    empty.mkdir()
    file.write_text("a: 1")
    link.symlink_to("gone")
    (made(tmp_path / "runs" / "odd") / "wandb" / "run-1-b" / "run-b.wandb").mkdir(parents=True)
    assert run("sync", "--dry-run", *map(str, (tmp_path / "runs").iterdir())) == 0
    out, err = capsys.readouterr()
    assert "runs/good" in out
    assert "runs/odd" in out
    assert sorted(line.split(":")[0] for line in err.splitlines()) == ["left out", "left out"]
    assert run("sync", "--dry-run", str(empty), str(link)) == 1
    assert "error: none of these 2 folders holds a run" in capsys.readouterr().err
    assert run("sync", "--dry-run", str(empty)) == 1
    assert good.is_dir()


def test_a_folder_that_may_not_be_read(
    run: Run, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, closed = made(tmp_path / "runs" / "good"), made(tmp_path / "runs" / "closed")
    stat, opened = Path.stat, Path.open

    def refused(self: Path) -> None:
        if closed in self.parents:  # root may read everything, so permissions alone show nothing there
            raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", lambda self, **given: refused(self) or stat(self, **given))
    monkeypatch.setattr(Path, "open", lambda self, *given, **more: refused(self) or opened(self, *given, **more))
    for command in ("compare", "figures"):
        assert run(command, str(good), str(closed)) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
        assert len(said) == 1
        assert "closed" in said[0]


def damaged(content: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield truncated and changed copies of a file."""
    draws = np.random.default_rng(seed)
    for _ in range(count):
        yield "truncated", content[: draws.integers(len(content))]
        flipped = bytearray(content)
        for place in draws.integers(len(content), size=draws.integers(1, 4)):
            flipped[place] ^= 1 << draws.integers(8)
        yield "flipped", bytes(flipped)
        start = draws.integers(len(content))
        yield "zeroed", content[:start] + bytes(len(content) - start)


def _fuzz(file: str, seed: int, count: int, run: Run, tmp_path: Path, capsys: Capture) -> None:
    good, other = made(tmp_path / "runs" / "good"), made(tmp_path / "runs" / "other")
    content = (other / file).read_bytes()
    for number, (kind, found) in enumerate(damaged(content, seed, count)):
        (other / file).write_bytes(found)
        for command in (("compare",), ("figures", "--style=curve"), ("sync", "--dry-run")):
            try:
                code = run(*command, str(good), str(other))
            except Exception as error:
                raise AssertionError(f"{command} on {file} {kind}, number {number} of seed {seed}") from error
            said = capsys.readouterr().err
            assert "Traceback" not in said
            # Two runs whose tables differ in their images are refused together; nothing else fails.
            assert code == 0 or (code == 1 and said.splitlines()[-1].startswith("error: ")), said


@pytest.mark.parametrize("file", FILES)
def test_no_damage_of_a_file_is_a_traceback(file: str, run: Run, tmp_path: Path, capsys: Capture) -> None:
    _fuzz(file, 1, 2, run, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("file", FILES)
def test_no_damage_of_a_file_is_a_traceback_at_many_places(
    file: str, seed: int, run: Run, tmp_path: Path, capsys: Capture
) -> None:
    _fuzz(file, seed + 10, 12, run, tmp_path, capsys)


def test_a_changed_byte_of_the_values_is_seen(tmp_path: Path) -> None:
    """A table whose values changed on the disk must not be read as another result."""
    folder = made(tmp_path / "run")
    file, expected = folder / "evaluation" / "examples.parquet", Evaluation.load(folder).digest
    for _, found in damaged(file.read_bytes(), 5, 60):
        file.write_bytes(found)
        with suppress(EvaluationError):
            assert Evaluation.load(folder).digest == expected


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as a training leaves it, of a tiny net."""
    from robustlit.models import SmallCNN
    from robustlit.training.checkpoint import pack

    net = SmallCNN(width=0.1)
    config = {
        "model": {"_target_": "robustlit.models.SmallCNN", "width": 0.1},
        "data": {"_target_": "robustlit.data.MNIST"},
    }
    of_lightning: dict[str, Any] = {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.6.0"}
    of_lightning |= {"loops": {}, "optimizer_states": [], "lr_schedulers": []}
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({**of_lightning, "state_dict": weights, "robustlit": pack(config)}, tmp_path / "net.ckpt")
    return tmp_path / "net.ckpt"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("robustlit"), "was not written by robustlit"),
        (lambda c: c.pop("state_dict"), "was not written by robustlit"),
        (lambda c: c["robustlit"].pop("config"), "holds no config"),
        (lambda c: c["robustlit"].update(config=[1]), "a config that is no mapping but list"),
        (lambda c: c["robustlit"]["config"].pop("model"), "has no model"),
        (lambda c: c["robustlit"]["config"].update(model="SmallCNN"), "has no model"),
        (lambda c: c["robustlit"].pop("format"), "checkpoint format None"),
        (lambda c: c.update(state_dict=[1]), "weights that are no state dict but a list"),
        (lambda c: c.update(state_dict={1: torch.zeros(1)}), "holds weights named 1"),
        (lambda c: c.update(state_dict={}), "do not fit SmallCNN"),
        (lambda c: c["state_dict"].update({next(iter(c["state_dict"])): 3}), "as a int, not as a tensor"),
    ],
)
def test_a_checkpoint_without_a_section_is_one_line(change: Any, match: str, checkpoint: Path) -> None:
    held = torch.load(checkpoint, weights_only=True)
    change(held)
    torch.save(held, checkpoint)
    with pytest.raises(CheckpointError, match=match):
        load_classifier(checkpoint)


@pytest.mark.parametrize("key", ["epoch", "global_step", "loops", "optimizer_states", "pytorch-lightning_version"])
def test_a_checkpoint_that_cannot_be_resumed_is_one_line(key: str, checkpoint: Path) -> None:
    held = torch.load(checkpoint, weights_only=True)
    check_resumable(read_checkpoint(checkpoint), checkpoint)
    del held[key]
    torch.save(held, checkpoint)
    load_classifier(checkpoint)  # its net is whole
    with pytest.raises(CheckpointError, match=f"lacks {key}, so no training can be resumed"):
        check_resumable(read_checkpoint(checkpoint), checkpoint)


def test_a_damaged_checkpoint_is_an_error_or_the_same_net(checkpoint: Path) -> None:
    content, expected = checkpoint.read_bytes(), load_classifier(checkpoint)[0].state_dict()
    refused = 0
    for _, found in damaged(content, 3, 40):
        checkpoint.write_bytes(found)
        refused += 1
        with suppress(CheckpointError):
            net = load_classifier(checkpoint)[0]
            refused -= 1
            assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())
    assert refused > 60
