"""Which W&B runs lie in folders, and whether they are uploaded."""

import os
from pathlib import Path

from wandb_records import keep

from robustlit.tracking.offline import Kept, find_kept


def test_runs_are_found_in_a_run_folder_and_in_the_folder_above(tmp_path: Path) -> None:
    newer = keep(tmp_path / "a" / "wandb" / "offline-run-20260102_000000-aaa")
    older = keep(tmp_path / "b" / "wandb" / "run-20260101_000000-bbb")
    (newer.parents[1] / "latest-run").symlink_to(newer.parent.name)
    assert [k.file for k in find_kept([tmp_path])] == [older, newer]  # parts of a run in the order of their start
    assert [k.file for k in find_kept([tmp_path / "a"])] == [newer]
    assert [k.file for k in find_kept([tmp_path / "a", tmp_path])] == [older, newer]


def test_a_run_that_grew_after_its_upload_is_not_uploaded(tmp_path: Path) -> None:
    file = keep(tmp_path / "wandb" / "offline-run-1-a")
    kept = Kept(tmp_path, file)
    assert not kept.uploaded
    kept.marker.touch()
    assert kept.uploaded
    later = file.stat().st_mtime + 10
    os.utime(file, (later, later))
    assert not kept.uploaded
