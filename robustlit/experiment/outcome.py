"""Test a run's net, and turn what came out into results.json, a report and an exit code."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import OmegaConf

from robustlit.evaluation.batches import split_size
from robustlit.experiment.gate import gate
from robustlit.experiment.model_card import NAME as CARD
from robustlit.experiment.model_card import model_card
from robustlit.experiment.report import print_found, print_report, print_verdict
from robustlit.experiment.results_json import largest_budgets, plain, summarise
from robustlit.experiment.trainer import Run
from robustlit.files import write_file
from robustlit.processes import deferred
from robustlit.results import OVERSTATED, Accuracy, Evaluation
from robustlit.tracking.console import say
from robustlit.tracking.logger import end_in_wandb, failure_ends_wandb, summarise_in_wandb

INTERRUPTED = 130
FAILED = 3  # under --strict: the figure is overstated


def measure(run: Run, seconds: dict[str, float], checkpoint: str | None = None, *, strict: bool = False) -> int:
    """Test the net, write results.json, print the report, end the W&B run and the process group.

    Args:
        run: What is tested.
        seconds: Duration of the phases before.
        checkpoint: The weights to test; None takes those that the module has.
        strict: Return `FAILED` where the figure is overstated, and 1 where there is no verdict.

    Returns:
        The exit code; `gate.BELOW` where the robust accuracy is below the recipe's `min_robust`, and all else is well.
    """
    started, code = time.monotonic(), 0
    try:
        with failure_ends_wandb(run.trainer), death_explained(run):
            run.trainer.test(run.module, datamodule=run.data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    except SystemExit as stop:
        code = stop_code(run, stop)
    before = getattr(run.sweep, "seconds_before", 0.0)  # of an evaluation that was stopped, and goes on here
    seconds = {**seconds, "evaluate": before + time.monotonic() - started}
    evaluation = run.sweep.evaluation if run.sweep else None  # on the main process
    if run.trainer.is_global_zero and (evaluation is not None or not code):
        with failure_ends_wandb(run.trainer), deferred():
            error = _write_and_print(run, evaluation, seconds)
        if error is not None:
            say(f"error: the results above could not be written to {run.plan.run_dir}: {error}")
            code = code or 1
        else:
            if hasattr(run.sweep, "remove_parts"):
                run.sweep.remove_parts()
            say(f"written to {run.plan.run_dir}")
            judged, reached = _strict_code(run) if strict else 0, gate(evaluation, run.plan.config)
            code = code or judged or reached
    close(run, code)
    return code


def stop_code(run: Run, stop: SystemExit) -> int:
    """Return the exit code of a run that left a Trainer: 128 + the signal's number, or 1 where a process died."""
    if run.guard is not None and run.guard.lost is not None:
        return 1
    # Lightning leaves with 1 after a Ctrl-C that no callback answered.
    return stop.code if isinstance(stop.code, int) and stop.code > 1 else INTERRUPTED


@contextmanager
def death_explained(run: Run) -> Iterator[None]:
    """Leave without a traceback where a collective failed because another process died, which was said already."""
    try:
        yield
    except RuntimeError:
        if run.guard is None or not run.guard.death_follows():
            raise
        raise SystemExit(1) from None


def close(run: Run, code: int) -> None:
    """End what outlives a Trainer: the W&B run, the connections of the processes and the process group."""
    end_in_wandb(run.trainer, code)
    if run.guard is not None:
        run.guard.close(code)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _write_and_print(run: Run, evaluation: Evaluation | None, seconds: dict[str, float]) -> OSError | None:
    """Write results.json and print it; return the error of the sweep's files or of this file, if any."""
    if evaluation is not None:
        clean = evaluation.clean_accuracy
    else:  # the module logged it
        n = len(run.data.test_indices)
        clean = Accuracy(round(float(run.trainer.callback_metrics["test/accuracy"]) * n), n)
    own = run.module.results() if hasattr(run.module, "results") else {}
    everything = getattr(run.sweep, "all_images", None)
    results = summarise(run.plan, run.module.net, evaluation, clean, seconds, split_size(run.data), everything) | own
    if (verdict := run.judge and run.judge.verdict) is not None:
        budget = {"norm": verdict.norm, "eps": verdict.eps}
        judged = {} if verdict.accuracy is None else plain(verdict.accuracy)
        results["verdict"] = {
            "figure": verdict.status, **budget, **judged, "profile": verdict.profile, **verdict.counts
        }  # fmt: skip
    summarise_in_wandb(run.trainer, results)
    writers: Any = run.trainer.callbacks  # type: ignore[attr-defined]
    errors: list[OSError] = [c.write_error for c in writers if getattr(c, "write_error", None) is not None]
    try:
        settings: Any = OmegaConf.to_container(run.plan.config, resolve=True)
        write_file(run.plan.run_dir / "results.json", json.dumps(results, indent=2) + "\n")
        meta, largest = ({}, {}) if evaluation is None else (evaluation.meta, largest_budgets(evaluation))
        write_file(run.plan.run_dir / CARD, model_card(results, settings, run.plan.command, meta, largest))
    except OSError as failed:
        errors.append(failed)
    try:
        print_report(results)
        if verdict is not None:
            print_verdict(verdict)
        print_found(own)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # how rich leaves where the reader, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return errors[0] if errors else None


def _strict_code(run: Run) -> int:
    if run.judge is not None and run.judge.verdict is not None:
        return FAILED if run.judge.verdict.status == OVERSTATED else 0
    why = run.judge and run.judge.trouble
    say(f"error: --strict, but there is no verdict: {why or 'none was asked for'}")
    return 1
