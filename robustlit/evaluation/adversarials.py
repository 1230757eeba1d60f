"""Keep the adversarial examples of a sweep: a folder for each attack at each budget, a file for each batch."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from robustlit.evaluation.sweep import Keep, Sweep
from robustlit.files import write_file

FOLDER = "adversarials"
_KIND = ".safetensors"
_LONGEST = 255  # bytes of a folder's name, on the usual file systems


class Adversarials:
    """Write the adversarial examples of each batch, as floats: rounded to 8 bits some would be adversarial no more.

    A file holds `x_adv` (B, C, H, W) in [0, 1], `index` (the example's number), `label`, `prediction` (of the attacked
    model), `clean` and `success`, (B,) each. Of an example that was not broken `x_adv` is the best attempt, of one that
    was misclassified before any attack the image itself.

    Args:
        sweep: What is run.
        digest: Of the sweep and the model; files of another are written anew.
        folder: The evaluation's folder; the files lie in `adversarials/` in it.
        examples: Number of examples in all, None where it is not known.
        note: Called once with a line that says how much is written, before the first attack.

    Raises:
        ValueError: An attack's name cannot name a folder, or two attacks would share one, see `check_names`.
    """

    def __init__(
        self, sweep: Sweep, digest: str, folder: Path, examples: int | None, note: Callable[[str], None]
    ) -> None:
        check_names(sweep)
        self.sweep, self.digest, self.folder = sweep, digest, folder / FOLDER
        self.examples, self._note = examples, note
        self._announced = self._warned = False

    def keeper(self, x: Tensor, index: Tensor, batch: str) -> Keep:
        """Return the function that writes the files of a batch (images, their numbers, its digest).

        Raises:
            ValueError: The disk has no room for those of all batches.
        """
        if not self._announced:
            self._announced = True
            self._announce(x)
        number = int(index.min())

        def keep(name: str, found: dict[str, Tensor]) -> None:
            tensors = {key: value.detach().cpu().contiguous() for key, value in found.items()}
            try:
                write_file(self._file(name, number), save(tensors, {"sweep": self.digest, "batch": batch}))
            except OSError as error:  # the table is worth more
                if not self._warned:
                    self._warned = True
                    warnings.warn(f"adversarial examples could not be kept: {error}", stacklevel=3)

        return keep

    def holds(self, index: Tensor, batch: str) -> bool:
        """Return whether the files of a batch are there."""
        return all(self._is_there(self._file(name, int(index.min())), batch) for name in self.sweep.run_names)

    def _is_there(self, file: Path, batch: str) -> bool:
        try:
            with safe_open(file, framework="pt") as there:
                return bool(there.metadata() == {"sweep": self.digest, "batch": batch})
        except (OSError, SafetensorError):
            return False

    def _file(self, name: str, number: int) -> Path:
        return self.folder / name / f"{number:07d}{_KIND}"

    def _announce(self, x: Tensor) -> None:
        runs, count = len(self.sweep.run_names), len(x) if self.examples is None else self.examples
        size = runs * count * x[0].numel() * x.element_size()
        each = "" if self.examples is not None else " a batch"
        what = f"{count} images{each}, {runs} attacks and budgets: {size / 1e6:.1f} MB{each} in {self.folder}"
        above = next(place for place in (self.folder, *self.folder.absolute().parents) if place.is_dir())
        if size > (free := shutil.disk_usage(above).free):
            raise ValueError(
                f"save_adversarials: {what}, and {free / 1e6:.1f} MB are free; take fewer images or attacks"
            )
        self._note(f"save_adversarials: {what}")


def check_names(sweep: Sweep) -> None:
    """Raise a ValueError unless each attack of a sweep, at each budget, can have a folder of its own."""
    names = sweep.run_names
    for name in names:
        # Ends in norm and budget, so it is never "..".
        if not name.isprintable() or "/" in name or "\\" in name or len(name.encode()) > _LONGEST:
            rule = f"no / and no \\, only printable characters, at most {_LONGEST} bytes with norm and budget"
            raise ValueError(
                f"save_adversarials: {name!r} cannot name a folder ({rule}); give that attack another name"
            )
        if names.count(name) > 1:
            raise ValueError(
                f"save_adversarials: two attacks would share the folder {name!r}; give one of them another name"
            )


def load_adversarials(folder: str | Path, name: str) -> dict[str, Tensor]:
    """Return the adversarial examples of an attack at a budget, of all batches, in the order of their numbers.

    Args:
        folder: The evaluation's folder (runs/NAME/evaluation), or the run folder above it.
        name: As its folder in `adversarials/` is called: "pgd_linf_0.3", "deepfool_l2".

    Returns:
        "x_adv" (N, C, H, W), and "index", "label", "prediction", "clean", "success" (N,) each.

    Raises:
        FileNotFoundError: There are none of that name.
    """
    places = [place / FOLDER for place in (Path(folder), Path(folder) / "evaluation")]
    files = sorted(file for place in places for file in (place / name).glob(f"*{_KIND}"))
    if not files:
        there = sorted(path.name for place in places for path in place.glob("*"))
        hint = f"there are {', '.join(there)}" if there else "evaluate with save_adversarials=true"
        raise FileNotFoundError(f"{folder} holds no adversarial examples named {name}; {hint}")
    parts = [load_file(file) for file in files]
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    order = joined["index"].argsort()
    return {key: value[order] for key, value in joined.items()}
