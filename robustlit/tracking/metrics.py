"""The name of everything that a run logs, defined once: the loggers, the callbacks and the dashboard take it from here.

A LABEL is an attack's name in a table: `pgd`, or `pgd-greybox` where the attacker knew less than everything.
LightningModules, which know nothing of loggers, log the names under "Training" by themselves.
"""

import re

CLEAN = "clean/accuracy"
WORST = "worst_case"  # the label of the worst case over all attacks
PARAMETERS = "parameters"
VERDICT = "verdict"  # believable, overstated or undecided: what the figure is (older runs: PASS, FAIL, INCONCLUSIVE)
VERDICT_ACCURACY = "verdict/robust_accuracy"  # the figure that was judged, beside it

# Tables and pictures.
ROBUST_TABLE = "robust/table"
VERDICT_TABLE = "verdict/table"
VERDICT_FIGURE = "figures/verdict"
IMAGES = "images/grid"
IMAGES_TABLE = "images/table"
IMAGES_BY_EPS = "images/by_eps"

# Training.
STEP = "trainer/global_step"
TRAIN_LOSS = "train/loss"
TRAIN_ACCURACY = "train/accuracy"
VAL_ACCURACY = "val/accuracy"
VAL_ROBUST = "val/robust_accuracy"
VAL_CERTIFIED = "val/certified_accuracy"
GUARD_TRAIN_ATTACK = "guard/train_attack_accuracy"
GUARD_PGD = "guard/pgd_accuracy"
GUARD_COLLAPSED = "guard/collapsed"

_ROBUST = re.compile(r"robust/(?P<label>.+)@(?P<norm>l2|linf)=(?P<eps>[^@=/]+)")
_AREA = re.compile(r"robust/(?P<label>.+)/auc_(?:l2|linf)")


def robust(label: str, norm: str, eps: float) -> str:
    """Return the name of an accuracy under attack at a budget, such as `robust/pgd@linf=0.3`."""
    return f"robust/{label}@{norm}={eps:g}"


def certified(norm: str, eps: float) -> str:
    """Return the name of the share of examples that are proven robust at a budget, `certified/any@linf=0.3`."""
    return f"certified/any@{norm}={eps:g}"


def of_all_images(name: str) -> str:
    """Return the name of a figure of all test images, where the others are of some: `all_images/clean/accuracy`."""
    return f"all_images/{name}"


def budget_of(name: str) -> tuple[str, str, float] | None:
    """Return (label, norm, eps) of a name that `robust` made, None of any other."""
    return (found["label"], found["norm"], float(found["eps"])) if (found := _ROBUST.fullmatch(name)) else None


def is_worst(name: str) -> bool:
    """Return whether a name that `robust` made is of the worst case over all attacks, of any knowledge."""
    found = budget_of(name)
    return found is not None and found[0].split("-")[0] == WORST


def median(label: str) -> str:
    """Return the name of the median L2 distance to the nearest adversarial example."""
    return f"robust/{label}/median_l2"


def area(label: str, distance: str) -> str:
    """Return the name of the area under a curve of accuracy against distance."""
    return f"robust/{label}/auc_{distance}"


def label_of_area(name: str) -> str | None:
    """Return the label of a name that `area` made, None of any other."""
    return found["label"] if (found := _AREA.fullmatch(name)) else None


def curve(label: str, distance: str) -> tuple[str, str]:
    """Return the names of a curve's distance and accuracy; over L2, the distance of every comparison, the short one."""
    accuracy = "accuracy" if distance == "l2" else f"accuracy_{distance}"
    return f"attack/{label}/{distance}", f"attack/{label}/{accuracy}"


def curves_figure(distance: str) -> str:
    """Return the name of the figure of all curves over a distance."""
    return f"figures/curves_{distance}"


def sandwich_figure(distance: str) -> str:
    """Return the name of the figure of certified and attacked accuracy over a distance."""
    return f"figures/sandwich_{distance}"


def verdict_count(status: str) -> str:
    """Return the name of the number of checks with a status: `verdict/pass`, `verdict/fail`, `verdict/inconclusive`."""
    return f"verdict/{status.lower()}"


def seconds(stage: str) -> str:
    """Return the name of the wall time of a stage, `seconds/train` or `seconds/evaluate`."""
    return f"seconds/{stage}"
