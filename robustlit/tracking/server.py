"""The W&B server: which one a run would use, whether there is a login, and what a refusal means."""

import os
import re
import ssl
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

_INSTEAD = "use --dry-run, which prints the specification"
TIMEOUT = 15  # seconds, of the dashboard's requests
# How W&B reports a server that answered: "returned error 401: ...", "HTTP 500: ...", "failed to upload: 401
# Unauthorized". An address or a run id may hold the same digits.
_ANSWERED = re.compile(r"(?:\berror|\bHTTP) ([45]\d\d)\b|(?<=: )([45]\d\d) [A-Z]\w+")
_UNREACHABLE = ("deadline exceeded", "timed out", "connection refused", "no such host", "giving up")


def server() -> str:
    """Return the address of the W&B server: WANDB_BASE_URL, or what `wandb login --host` stored. No server is asked."""
    if address := os.environ.get("WANDB_BASE_URL"):
        return address
    stored = ConfigParser(interpolation=None)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    with suppress(ConfigParserError, OSError, ValueError):  # missing, damaged, not text
        stored.read(folder / "settings")
    return stored.get("default", "base_url", fallback="https://api.wandb.ai")


def logged_in() -> bool:
    """Return whether there is an API key for that server, in the environment or in a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(server()).hostname or ""
    for file in filter(None, (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")):
        with suppress(OSError, NetrcParseError, ValueError):  # missing, damaged, not text
            found = netrc(Path(file).expanduser()).authenticators(host)
            if found and found[2]:  # the password is the key
                return True
    return False


def in_few_words(trouble: str) -> str:
    """Return a short form of W&B's report of trouble with its server."""
    text = " ".join(trouble.split())
    answered = _ANSWERED.search(text)
    if answered and {"401", "403"} & {*answered.groups()}:
        return f"{server()} refused the key (`wandb login --relogin` takes a new one)"
    if answered:
        return f"{server()} answered {answered[0]}"
    if any(sign in text.lower() for sign in _UNREACHABLE):
        return f"{server()} cannot be reached"
    return text[:200]


def connect() -> Any:
    """Return a `wandb.Api` whose server has answered in bounded time.

    Raises:
        ValueError: No login, which is known without asking a server; no answer, or a refusal.
    """
    import wandb

    address = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    try:
        if not wandb.login(prompt=False, verify=False):
            raise ValueError(f"W&B is not logged in, or WANDB_MODE keeps it offline: run `wandb login`, or {_INSTEAD}")
        _check_answers(address)
        return wandb.Api(timeout=TIMEOUT)
    except (wandb.Error, OSError) as error:
        trouble = f"W&B at {address} cannot be reached, or does not let you in: {_one_line(error)}"
        raise ValueError(f"{trouble}; {_INSTEAD}") from error


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the many kinds of errors that wandb and wandb-workspaces raise into one ValueError with one line."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"W&B did not take the dashboard: {_one_line(error)}") from error


def _check_answers(address: str) -> None:
    """Raise an OSError unless something answers there, even with a refusal: wandb itself would try for very long."""
    try:
        urlopen(address, timeout=TIMEOUT).close()
    except HTTPError:
        return
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # wandb has certificates of its own
            raise


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
