"""kill -9 a short run at random moments, then the same command until it ends: is anything lost?

    OMP_NUM_THREADS=1 python benchmarks/kill_and_resume.py --kills 50 --json kills.json

Each run trains a SmallCNN on 300 digits for two epochs and sweeps 40 test images. It is killed once, at a moment drawn
from one kind after the other: at any time, within a training step, within a validation, while a file is being written
(half of it is there), between a file's last byte and its place, after a file, and within the sweep. Its command has
resume=auto, and is given again until it ends. Weights, optimizer, schedule, best score, table and results.json (apart
from times) must then equal those of a run that was not killed. The run folders lie on another file system than the
temporary folder (/dev/shm). Every run is a process of its own, forked after the imports, which take longer than a run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustlit import files
from robustlit.cli import main as robustlit
from robustlit.evaluation import Sweep
from robustlit.experiment import train  # noqa: F401  imported before the processes are forked
from robustlit.training import RobustClassifier

COMMAND = [
    "recipe=standard", "model=small_cnn", "trainer.max_epochs=2", "trainer.precision=32-true",
    "trainer.accelerator=cpu", "data.train_size=300", "data.batch_size=50", "data.val_size=100",
    "data.eval_batch_size=20", "data.test_size=40", "validation_attack.steps=2", "sweep.attacks.pgd.steps=2",
    "sweep.attacks.bim.steps=2", "sweep.grid.linf=[0.1]", "callbacks.progress=null", "callbacks.images=null",
    "logger=none", "checkpoint_minutes=1e-9", "resume=auto",
]  # fmt: skip
KINDS = ("time", "training", "validation", "half a file", "a whole file", "after a file", "sweep")
ATTEMPTS = 3


def start(words: list[str], prepare: Callable[[], None], log: Path) -> int:
    """Fork a process that runs the command; return its number."""
    child = os.fork()
    if child:
        return child
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = 1
    try:
        prepare()
        sys.argv = ["robustlit", "train", *words]
        robustlit()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(process: int) -> int:
    """Wait for a process and return its exit code; minus the signal for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Let `act` run before each call of a function, with its arguments."""
    function = getattr(owner, name)

    def called(*arguments: Any, **named: Any) -> Any:
        act(*arguments)
        return function(*arguments, **named)

    setattr(owner, name, called)


def watch(kind: str, act: Callable[..., None]) -> None:
    """Let `act` run at each moment of a kind; it gets the file's path while one is being written."""
    if kind == "training":
        before(RobustClassifier, "training_step", lambda *given: act())
    elif kind == "validation":
        before(RobustClassifier, "validation_step", lambda *given: act())
    elif kind == "sweep":
        before(Sweep, "attack_batch", lambda *given: act())
    elif kind in ("half a file", "a whole file"):
        before(files.os, "replace", lambda part, target: act(part))
    elif kind == "after a file":
        replace = os.replace

        def replaced(part: str, target: str) -> None:
            replace(part, target)
            act()

        files.os.replace = replaced  # type: ignore[assignment]


def kill_at(kind: str, number: int) -> None:
    """Kill this process at its moment `number` of a kind."""
    left = [number]

    def act(part: str | None = None) -> None:
        left[0] -= 1
        if left[0] < 0:
            if part is not None and kind == "half a file":
                os.truncate(part, os.path.getsize(part) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    watch(kind, act)


def count(counted: Path) -> None:
    """Count the moments of each kind, a line in a file for each."""
    for kind in KINDS[1:]:

        def act(*given: Any, kind: str = kind) -> None:
            with counted.open("a") as file:
                file.write(f"{kind}\n")

        watch(kind, act)


def outcome(run: Path) -> dict[str, Any]:
    """Return what must be equal: checkpoints, table, results apart from times, and files."""
    found: dict[str, Any] = {}
    for name in ("best", "last"):
        read = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        scores = [state["best_model_score"] for state in read["callbacks"].values() if "best_model_score" in state]
        kept = {key: read[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")}
        found[f"{name}.ckpt"] = {**kept, "scores": scores}
    found["table"] = pd.read_parquet(run / "evaluation" / "examples.parquet")
    results = json.loads((run / "results.json").read_text())
    changing = ("name", "seconds", "attack_seconds")
    found["results.json"] = {key: value for key, value in results.items() if key not in changing}
    found["config.yaml"] = (run / "config.yaml").read_text().replace(str(run), "RUN").replace(run.name, "RUN")
    parts = {"evaluation/parts"}  # finished batches of a sweep, which need not stay
    there = (file.relative_to(run) for file in run.rglob("*") if file.is_file())
    found["files"] = sorted(str(file) for file in there if str(file.parent) not in parts)
    return found


def equal(a: Any, b: Any) -> bool:
    """Return whether two outcomes are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, pd.DataFrame):
        return bool(a.equals(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def killed_and_resumed(number: int, kind: str, moment: float, whole: dict[str, Any], log: Path) -> dict[str, Any]:
    """Kill a run, give its command again until it ends, and compare."""
    words, started = [*COMMAND, f"name=kill-{number}"], time.monotonic()
    prepare = (lambda: None) if kind == "time" else (lambda: kill_at(kind, int(moment)))
    codes = [0]
    while codes == [0]:
        process = start(words, prepare, log)
        if kind == "time":
            time.sleep(moment)
            os.kill(process, signal.SIGKILL)  # a process that has ended stays until it is waited for
        codes = [ended(process)]
        if codes == [0]:  # on a busy machine it can have ended before
            shutil.rmtree(Path("runs") / f"kill-{number}")
            moment *= 0.7
    while codes[-1] != 0 and len(codes) <= ATTEMPTS:
        codes.append(ended(start(words, lambda: None, log)))
    run = Path("runs") / f"kill-{number}"
    found = outcome(run.absolute()) if codes[-1] == 0 else {}
    differs = [key for key in whole if not equal(whole[key], found.get(key))]
    if not differs:
        shutil.rmtree(run)
    return {"kind": kind, "moment": round(moment, 2), "codes": codes, "differs": differs,
            "seconds": round(time.monotonic() - started, 1)}  # fmt: skip


def measure(kills: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Run everything in `folder`; return a record a kill."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    log, counted = folder / "log.txt", folder / "moments.txt"
    assert ended(start([*COMMAND, "name=whole"], lambda: count(counted), log)) == 0, log.read_text()
    begun = time.monotonic()
    assert ended(start([*COMMAND, "name=again"], lambda: None, log)) == 0, log.read_text()
    duration, whole = time.monotonic() - begun, outcome(folder / "runs" / "whole")
    moments = counted.read_text().splitlines()
    draws, records = random.Random(seed), []
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        moment = draws.uniform(0, duration) if kind == "time" else draws.randrange(moments.count(kind))
        records.append(killed_and_resumed(number, kind, moment, whole, log))
        last = records[-1]
        verdict = f"DIFFERS: {', '.join(last['differs'])}" if last["differs"] else "equal"
        print(f"{number:>3}  {kind:<13} at {last['moment']:<7} exit codes {last['codes']}  {verdict}", flush=True)
    return records


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new one for the runs (default: in /dev/shm)")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    json_path = None if wanted.json is None else wanted.json.absolute()
    folder = wanted.folder or Path("/dev/shm") / f"kill-and-resume-{os.getpid()}"
    records = measure(wanted.kills, wanted.seed, folder.absolute())
    equals = sum(not record["differs"] for record in records)
    for kind in KINDS:
        of_kind = [not record["differs"] for record in records if record["kind"] == kind]
        print(f"{kind:<14}{sum(of_kind):>3} of {len(of_kind)}")
    elsewhere = os.stat(folder).st_dev != os.stat(tempfile.gettempdir()).st_dev
    print(f"runs in {folder}, on {'another' if elsewhere else 'the same'} file system than {tempfile.gettempdir()}")
    print(f"{equals} of {len(records)} equal")
    if json_path is not None:
        json_path.write_text(json.dumps({"equal": equals, "kills": records}, indent=1))
    if equals == len(records):
        shutil.rmtree(folder)
    return int(equals != len(records))


if __name__ == "__main__":
    sys.exit(main())
