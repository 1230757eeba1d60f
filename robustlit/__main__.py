"""`python -m robustlit`: the same as the command `robustlit`."""

from robustlit.cli import main

main()
