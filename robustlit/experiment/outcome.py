"""Test a run's net, and turn what came out into results.json, a report and an exit code."""

from __future__ import annotations

import json
import os
import sys
import time

import pytorch_lightning as pl
import torch

from robustlit.experiment.report import print_found, print_report, print_verdict
from robustlit.experiment.results_json import summarise
from robustlit.experiment.trainer import Run
from robustlit.results import FAIL, Accuracy, Evaluation
from robustlit.tracking.console import say
from robustlit.tracking.logger import end_in_wandb, failure_ends_wandb, summarise_in_wandb

INTERRUPTED = 130
FAILED = 3  # the verdict, under --strict


def measure(run: Run, seconds: dict[str, float], checkpoint: str | None = None, *, strict: bool = False) -> int:
    """Test the net, write results.json, print the report, end the W&B run and the process group.

    Args:
        run: What is tested.
        seconds: Duration of the phases before.
        checkpoint: The weights to test; None takes those that the module has.
        strict: Return `FAILED` where the verdict fails, and 1 where there is none.

    Returns:
        The exit code.
    """
    started, code = time.monotonic(), 0
    try:
        with failure_ends_wandb(run.trainer):
            run.trainer.test(run.module, datamodule=run.data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    except SystemExit:  # how Lightning leaves after Ctrl-C
        code = INTERRUPTED
    seconds = {**seconds, "evaluate": time.monotonic() - started}
    evaluation = run.sweep.evaluation if run.sweep else None  # on the main process
    if run.trainer.is_global_zero and (evaluation is not None or not code):
        with failure_ends_wandb(run.trainer):
            error = _write_and_print(run, evaluation, seconds)
        if error is not None:
            say(f"error: the results above could not be written to {run.plan.run_dir}: {error}")
            code = code or 1
        else:
            say(f"written to {run.plan.run_dir}")
            code = code or (_strict_code(run) if strict else 0)
    close(run.trainer, code)
    return code


def close(trainer: pl.Trainer, code: int) -> None:
    """End what outlives a Trainer: the W&B run and the process group."""
    end_in_wandb(trainer, code)
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
    results = summarise(run.plan, run.module.net, evaluation, clean, seconds) | own
    if (verdict := run.judge and run.judge.verdict) is not None:
        results["verdict"] = {"profile": verdict.profile, "status": verdict.status, **verdict.counts}
    summarise_in_wandb(run.trainer, results)
    error: OSError | None = run.sweep.write_error if run.sweep else None
    try:
        (run.plan.run_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    except OSError as failed:
        error = failed
    try:
        print_report(results)
        if verdict is not None:
            print_verdict(verdict)
        print_found(own)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # how rich leaves where the reader, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return error


def _strict_code(run: Run) -> int:
    if run.judge is not None and run.judge.verdict is not None:
        return FAILED if run.judge.verdict.status == FAIL else 0
    why = run.judge and run.judge.trouble
    say(f"error: --strict, but there is no verdict: {why or 'none was asked for'}")
    return 1
