"""The command line: arguments only, one file a command."""

from robustlit.cli.main import main as main
