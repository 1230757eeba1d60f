"""wandb_logger: which mode it starts in, and what it does where W&B cannot start."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from wandb_server import WandbServer

from robustlit.callbacks import wandb_logger
from robustlit.callbacks.wandb_logger import finish_wandb
from robustlit.tracking.account import logged_in
from robustlit.tracking.console import is_main_process


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user without a key, whose home is an empty folder."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()  # which reads the variables once
    yield
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that the user is logged in to."""
    with WandbServer() as server:
        for name, value in server.environment(tmp_path / "own").items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What wandb.init is asked for; it refuses."""
    calls: list[dict[str, Any]] = []

    def refuse(**settings: Any) -> None:
        calls.append(settings)
        raise wandb.errors.CommError("no route to the server")

    monkeypatch.setattr(wandb, "init", refuse)
    return calls


def test_it_starts_offline_without_a_key_and_says_how_to_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    logger = wandb_logger(folder=tmp_path / "run")
    assert isinstance(logger, WandbLogger)
    assert logger.experiment.offline
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("W&B:"))
    assert line == f"W&B: offline; to upload this run later: robustlit sync {tmp_path / 'run'}"
    assert list((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(("mode", "key", "expected"), [
    (None, False, "offline"),
    (None, True, "online"),
    ("online", False, "online"),
    ("offline", True, "offline"),
])  # fmt: skip
def test_the_mode_is_the_users(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[dict[str, Any]],
    mode: str | None,
    key: bool,
    expected: str,
) -> None:
    if mode is None:
        monkeypatch.delenv("WANDB_MODE")
    else:
        monkeypatch.setenv("WANDB_MODE", mode)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.warns(UserWarning, match="W&B did not start"):
        wandb_logger(folder=tmp_path, run_id="abc", group="g", job_type="eval")
    assert asked[0]["mode"] == expected
    assert {name: asked[0][name] for name in ("id", "group", "job_type", "resume")} == {
        "id": "abc", "group": "g", "job_type": "eval", "resume": "allow",
    }  # fmt: skip


def test_where_it_cannot_start_metrics_go_to_csv_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.warns(UserWarning, match=r"W&B did not start \(CommError: no route to the server\); metrics go to CSV"):
        logger = wandb_logger(folder=tmp_path / "run")
    assert isinstance(logger, CSVLogger)
    assert [settings["mode"] for settings in asked] == ["online", "offline"]
    logger.log_metrics({"val/accuracy": 0.5}, step=0)
    logger.save()
    assert "val/accuracy" in (tmp_path / "run" / "csv" / "metrics.csv").read_text()


def test_a_folder_that_cannot_be_made_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="W&B did not start"):
        assert isinstance(wandb_logger(folder=tmp_path / "file" / "below"), CSVLogger)


def test_a_disabled_run_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = wandb_logger(folder=tmp_path)
    assert isinstance(logger, WandbLogger)
    logger.log_metrics({"loss": 1.0})
    assert "W&B: disabled" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "reason"), [
    (401, "refused the key (`wandb login --relogin` takes a new one)"),
    (403, "refused the key (`wandb login --relogin` takes a new one)"),
    (404, "answered error 404"),
    (500, "answered HTTP 500"),
    (None, "cannot be reached"),
])  # fmt: skip
def test_a_server_that_does_not_take_the_run_leaves_it_offline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: WandbServer,
    status: int | None,
    reason: str,
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


def test_a_run_that_arrived_is_marked_so(tmp_path: Path, server: WandbServer) -> None:
    logger = wandb_logger(folder=tmp_path / "run", run_id="abc", name="n", group="g", job_type="eval", tags=["t"])
    logger.log_metrics({"loss": 1.0})
    assert finish_wandb(3) is None
    run = server.run()
    assert (run.id, run.name, run.group, run.job_type, run.tags) == ("abc", "n", "g", "eval", ["t"])
    assert [value for _, value in run.rows("loss")] == [1.0]
    assert run.exit_code == 3
    assert len(list((tmp_path / "run").glob("wandb/run-*-abc/run-abc.wandb.synced"))) == 1


def test_a_key_that_expires_in_mid_run_is_said(tmp_path: Path, server: WandbServer) -> None:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbServer
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


def test_in_a_sweep_the_agent_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    with pytest.warns(UserWarning, match="W&B did not start"):
        wandb_logger(folder=tmp_path, project="ours", run_id="ours")
    assert (asked[0]["project"], asked[0]["id"]) == ("theirs", None)


def test_the_server_that_a_login_stored_is_the_one_whose_key_counts(tmp_path: Path) -> None:
    (tmp_path / "home" / ".netrc").write_text(f"machine wandb.example.org\n  login user\n  password {'0' * 40}\n")
    assert not logged_in()
    settings = tmp_path / "wandb-own" / "settings"
    settings.parent.mkdir()
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert logged_in()
    settings.write_bytes(b"\xff[[")
    assert not logged_in()


@pytest.mark.parametrize(
    ("file", "host", "url", "expected"),
    [
        (".netrc", "api.wandb.ai", None, True),
        ("_netrc", "api.wandb.ai", None, True),
        ("elsewhere", "api.wandb.ai", None, True),
        (".netrc", "github.com", None, False),
        (".netrc", "wandb.example.org", "https://wandb.example.org:8080/", True),
        (".netrc", "api.wandb.ai", "https://wandb.example.org", False),
    ],
)
def test_a_key_in_netrc_is_found_for_its_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, host: str, url: str | None, expected: bool
) -> None:
    assert not logged_in()
    path = tmp_path / "home" / file
    path.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    path.chmod(0o600)
    if file == "elsewhere":
        assert not logged_in()
        monkeypatch.setenv("NETRC", str(path))
    if url is not None:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert logged_in() == expected


@pytest.mark.parametrize("content", [b"machine api.wandb.ai login\n{{{", b"}{ machine", b"machine \xff\xfe", b""])
def test_a_netrc_that_is_damaged_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "home" / ".netrc").write_bytes(content)
    assert not logged_in()


def test_no_server_is_asked_for_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a connection was opened"))
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logged_in()


@pytest.mark.parametrize(("synced", "other", "expected"), [
    (False, False, "offline"),
    (True, False, "online"),
    (False, True, "online"),
])  # fmt: skip
def test_a_later_part_does_not_overtake_one_that_was_kept_offline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[dict[str, Any]],
    synced: bool,
    other: bool,
    expected: str,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    earlier = tmp_path / "wandb" / f"offline-run-20260101_000000-{'xyz' if other else 'abc'}" / "run.wandb"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    if synced:
        earlier.with_suffix(".wandb.synced").touch()
    with pytest.warns(UserWarning, match="W&B did not start"):
        wandb_logger(folder=tmp_path, run_id="abc")
    assert asked[0]["mode"] == expected


def test_only_the_first_node_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_main_process()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_main_process()
    monkeypatch.setenv("RANK", "0")  # torchrun and SLURM give every process its own
    assert is_main_process()
