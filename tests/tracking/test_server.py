"""Which W&B server and key count, found without asking a server; and which process prints."""

import socket
from pathlib import Path

import pytest
from wandb_server import forget_login

from robustlit.tracking.console import is_main_process
from robustlit.tracking.server import logged_in

Patch = pytest.MonkeyPatch

KEY = f"login user\n  password {'0' * 40}\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: Patch) -> Path:
    forget_login(monkeypatch, tmp_path)
    return tmp_path


def test_the_server_that_a_login_stored_is_the_one_whose_key_counts(home: Path, tmp_path: Path) -> None:
    (home / ".netrc").write_text(f"machine wandb.example.org\n  {KEY}")
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
    tmp_path: Path, monkeypatch: Patch, file: str, host: str, url: str | None, expected: bool
) -> None:
    assert not logged_in()
    path = tmp_path / file
    path.write_text(f"machine {host}\n  {KEY}")
    path.chmod(0o600)
    if file == "elsewhere":
        assert not logged_in()
        monkeypatch.setenv("NETRC", str(path))
    if url is not None:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert logged_in() == expected


@pytest.mark.parametrize("content", [b"machine api.wandb.ai login\n{{{", b"}{ machine", b"machine \xff\xfe", b""])
def test_a_netrc_that_is_damaged_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".netrc").write_bytes(content)
    assert not logged_in()


def test_no_server_is_asked_for_the_key(monkeypatch: Patch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a connection was opened"))
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logged_in()


def test_only_the_first_node_speaks(monkeypatch: Patch) -> None:
    assert is_main_process()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_main_process()
    monkeypatch.setenv("RANK", "0")  # torchrun and SLURM give every process its own
    assert is_main_process()
