"""wandb_logger: the mode it starts in, what it does where W&B cannot start, and the end of its run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from wandb_records import keep
from wandb_server import WandbServer, forget_login

from robustlit.callbacks import wandb_logger
from robustlit.tracking.logger import finish_wandb

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _no_key(tmp_path: Path, monkeypatch: Patch) -> Iterator[None]:
    forget_login(monkeypatch, tmp_path / "home")
    wandb.teardown()  # which reads the variables once
    yield
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: Patch) -> Iterator[WandbServer]:
    """A server with a login."""
    with WandbServer() as server:
        for name, value in server.environment(tmp_path / "own").items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.faults
def test_what_is_logged_is_in_the_file_before_the_run_ends(tmp_path: Path) -> None:
    logger = wandb_logger(folder=tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    logger.log_metrics({"val/accuracy": 0.5}, step=3)
    end = time.monotonic() + 10  # W&B's own interval is 15
    while b"val/accuracy" not in file.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)
    assert b"val/accuracy" in file.read_bytes()  # what a kill -9 leaves


@pytest.mark.faults
def test_a_part_that_a_kill_left_empty_is_named_at_resume(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    for name, size in (("1-mine", 7), ("2-mine", 400), ("3-other", 7)):
        folder = tmp_path / "wandb" / f"offline-run-{name}"
        folder.mkdir(parents=True)
        (folder / "run.wandb").write_bytes(b"0" * size)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb_logger(folder=tmp_path, run_id="mine")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "is empty" in line]
    assert (
        f"W&B: {tmp_path / 'wandb' / 'offline-run-1-mine'} is empty: what that part of the run logged was lost" in line
    )


Start = Callable[..., tuple[list[dict[str, Any]], Logger]]


@pytest.fixture
def refused(monkeypatch: Patch) -> Start:
    """Start a logger while `wandb.init` fails, and return the settings of each call to that, and the logger."""
    calls: list[dict[str, Any]] = []

    def refuse(**settings: Any) -> None:
        calls.append(settings)
        raise wandb.errors.CommError("no route to the server")

    def start(**options: Any) -> tuple[list[dict[str, Any]], Logger]:
        expected = r"W&B did not start \(CommError: no route to the server\); metrics go to CSV"
        with pytest.warns(UserWarning, match=expected):
            return calls, wandb_logger(**options)

    monkeypatch.setattr(wandb, "init", refuse)
    return start


def test_it_starts_offline_without_a_key_and_prints_how_to_upload(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    logger = wandb_logger(folder=tmp_path / "run")
    assert isinstance(logger, WandbLogger)
    assert logger.experiment.offline
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("W&B:"))
    assert line == f"W&B: offline; to upload this run later: robustlit sync {tmp_path / 'run'}"
    assert list((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [(None, False, "offline"), (None, True, "online"), ("online", False, "online"), ("offline", True, "offline")],
)
def test_the_mode_is_the_users(
    tmp_path: Path, monkeypatch: Patch, refused: Start, mode: str | None, key: bool, expected: str
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    for name, value in {"WANDB_MODE": mode, "WANDB_API_KEY": "0" * 40 if key else None}.items():
        if value:
            monkeypatch.setenv(name, value)
    given = {"group": "g", "job_type": "eval"}
    asked, _ = refused(folder=tmp_path, run_id="abc", **given)
    assert asked[0].items() >= {"mode": expected, "id": "abc", "resume": "allow", **given}.items()


def test_where_it_cannot_start_metrics_go_to_csv_files(tmp_path: Path, monkeypatch: Patch, refused: Start) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    asked, logger = refused(folder=tmp_path / "run")
    assert isinstance(logger, CSVLogger)
    assert [settings["mode"] for settings in asked] == ["online", "offline"]
    logger.log_metrics({"val/accuracy": 0.5}, step=0)
    logger.save()
    assert "val/accuracy" in (tmp_path / "run" / "csv" / "metrics.csv").read_text()


def test_a_folder_that_cannot_be_made_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="W&B did not start"):
        assert isinstance(wandb_logger(folder=tmp_path / "file" / "below"), CSVLogger)


def test_a_disabled_run_is_quiet(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = wandb_logger(folder=tmp_path)
    assert isinstance(logger, WandbLogger)
    logger.log_metrics({"loss": 1.0})
    assert "W&B: disabled" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("status", "reason"), [
    (401, "refused the key (`wandb login --relogin` takes a new one)"),
    (403, "refused the key (`wandb login --relogin` takes a new one)"),
    (404, "answered error 404"),
    (500, "answered HTTP 500"),
    (None, "cannot be reached"),
])  # fmt: skip
def test_a_server_that_does_not_take_the_run_leaves_it_offline(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture, server: WandbServer, status: int | None, reason: str
) -> None:
    monkeypatch.setenv("WANDB_X_GRAPHQL_RETRY_MAX", "1")  # a timeout would cut a slow machine's answer short
    if status is None:
        server.stop()
    server.status = status
    logger = wandb_logger(folder=tmp_path / "run", run_id="401-403")  # no status of the server
    assert isinstance(logger, WandbLogger)
    assert logger.experiment.offline
    assert logger.experiment.id == "401-403"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert line == f"W&B: {server.url} {reason}; offline; to upload this run later: robustlit sync {tmp_path / 'run'}"
    logger.log_metrics({"loss": 1.0})
    assert finish_wandb(0) is None
    (folder,) = [f for f in (tmp_path / "run" / "wandb").glob("*run-*") if not f.is_symlink()]
    assert folder.name.startswith("offline-run-")  # nothing is left of the start that failed


@pytest.mark.slow
def test_a_run_that_arrived_is_marked_so(tmp_path: Path, server: WandbServer) -> None:
    logger = wandb_logger(folder=tmp_path / "run", run_id="abc", name="n", group="g", job_type="eval", tags=["t"])
    logger.log_metrics({"loss": 1.0})
    assert finish_wandb(3) is None
    run = server.run()
    assert (run.id, run.name, run.group, run.job_type, run.tags) == ("abc", "n", "g", "eval", ["t"])
    assert [value for _, value in run.rows("loss")] == [1.0]
    assert run.exit_code == 3
    assert len(list((tmp_path / "run").glob("wandb/run-*-abc/run-abc.wandb.synced"))) == 1


@pytest.mark.slow
def test_a_key_that_expires_in_mid_run_is_reported(tmp_path: Path, server: WandbServer) -> None:
    logger = wandb_logger(folder=tmp_path / "run", run_id="abc")
    server.status = 401  # wandb.finish() returns as if all were well
    logger.log_metrics({"loss": 1.0})
    said = finish_wandb(0)
    assert said == (
        f"W&B: the run was not uploaded completely ({server.url} refused the key (`wandb login --relogin` takes a new "
        f"one)); to upload it later: robustlit sync {tmp_path / 'run'}"
    )
    assert not list((tmp_path / "run").glob("wandb/run-*-abc/*.synced"))


def test_a_process_of_another_rank_never_speaks_to_the_server(
    tmp_path: Path, monkeypatch: Patch, server: WandbServer
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = wandb_logger(folder=tmp_path / "run")
    logger.log_metrics({"loss": 1.0})
    logger.log_hyperparams({"eps": 0.3})
    assert isinstance(logger, WandbLogger)
    logger.experiment.log({"loss": 1.0})
    assert wandb.run is None
    assert (server.asked, server.unknown) == ([], [])
    assert not (tmp_path / "run").exists()


def test_in_a_sweep_the_agent_decides(tmp_path: Path, monkeypatch: Patch, refused: Start) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    asked, _ = refused(folder=tmp_path, project="ours", run_id="ours")
    assert (asked[0]["project"], asked[0]["id"]) == ("theirs", None)


@pytest.mark.parametrize(
    ("synced", "run_id", "expected"), [(False, "abc", "offline"), (True, "abc", "online"), (False, "xyz", "online")]
)
def test_a_later_part_does_not_overtake_one_that_was_kept_offline(
    tmp_path: Path, monkeypatch: Patch, refused: Start, synced: bool, run_id: str, expected: str
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    keep(tmp_path / "wandb" / f"offline-run-20260101_000000-{run_id}", synced=synced)
    asked, _ = refused(folder=tmp_path, run_id="abc")
    assert asked[0]["mode"] == expected
