"""Whose W&B account a run would go to, found out without asking a server."""

from __future__ import annotations

import os
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit


def server() -> str:
    """The address of the server that W&B would speak to: WANDB_BASE_URL, or what `wandb login --host` stored."""
    if address := os.environ.get("WANDB_BASE_URL"):
        return address
    stored = ConfigParser(interpolation=None)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    with suppress(ConfigParserError, OSError, ValueError):  # missing, damaged, not text
        stored.read(folder / "settings")
    return stored.get("default", "base_url", fallback="https://api.wandb.ai")


def logged_in() -> bool:
    """Whether there is an API key (environment or netrc), without asking a server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(server()).hostname or ""
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(f).expanduser() for f in files if f):
        try:
            found = netrc(file).authenticators(host)
            if found and found[2]:  # the password is the key
                return True
        except (OSError, NetrcParseError, ValueError):  # missing, damaged, not text
            continue
    return False
