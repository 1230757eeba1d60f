"""The processes of one run: signals, a stop that all of them agree on, and the death of one of them."""

from robustlit.processes.children import Children, watch_parent
from robustlit.processes.guard import Guard
from robustlit.processes.memory import keep_freed_memory
from robustlit.processes.signals import deferred, exit_code, leave_on_signals, without_lightnings_handlers

__all__ = [
    "Children", "Guard", "deferred", "exit_code", "keep_freed_memory", "leave_on_signals", "watch_parent",
    "without_lightnings_handlers",
]  # fmt: skip
