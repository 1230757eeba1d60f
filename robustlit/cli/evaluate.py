"""Attack a checkpoint or a net of yours, and judge it.

CHECKPOINT is a .ckpt file, or a run folder (runs/NAME) for the best one there; it is attacked by the recipe that it
holds. A net of yours comes from a function without arguments, and is attacked by default with WorstCase at eps and for
the nearest adversarial examples in L2.

Leaves in runs/NAME-eval/: config.yaml, evaluation/ (per-example table, curves, figures), results.json.

exit codes: 0 done; 1 an error, or --strict without a verdict; 2 a command that cannot be read; 3 the figure is
overstated (--strict); 4 the robust accuracy is below --min-robust (3 goes before 4); 128 + N stopped by signal N.

examples:
  %(prog)s runs/NAME sweep=worst_case data.test_size=1000
  %(prog)s runs/NAME eps=8/255 name=again          any value of the recipe can be changed
  %(prog)s runs/NAME sweep=worst_case resume=auto      go on with an evaluation that was stopped
  %(prog)s runs/NAME sweep=linf ~sweep.attacks.bim     a group by its name; ~ drops a key
  %(prog)s runs/NAME trust=[my_package]            the checkpoint's recipe may name classes of your package
  %(prog)s runs/NAME --verdict=full --strict           fail where the figure is overstated
  %(prog)s runs/NAME sweep=worst_case --min-robust 0.4      fail where less than 40 %% are robust
  %(prog)s --model my.module:build --weights w.pt --data mnist --n 1000 --verdict
  %(prog)s --robustbench Wong2020Fast --n 1000       a net of RobustBench, beside its leaderboard's figure
"""

import argparse

from robustlit.cli.parser import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s CHECKPOINT [key=value ...] [--verdict[=full]] [--strict] [--min-robust SHARE]\n"
        "       %(prog)s --model MODULE:FUNCTION [--weights FILE] [--data NAME] [--n IMAGES] [key=value ...] [...]\n"
        "       %(prog)s --robustbench MODEL_ID [--dataset NAME] [--threat NORM] [--data NAME] [--n IMAGES]"
    )
    parser.add_argument("words", nargs="*", metavar="CHECKPOINT, key=value", help="a checkpoint, values of the recipe")
    net = parser.add_argument_group("a net of yours")
    net.add_argument("--model", metavar="MODULE:FUNCTION", help="returns a torch.nn.Module: pixels in [0, 1] to logits")
    net.add_argument("--weights", metavar="FILE", help="its weights, as torch.save(net.state_dict(), FILE) writes them")
    net.add_argument("--data", metavar="NAME", help="mnist (default), fashion_mnist, cifar10, cifar100, svhn, "
                     "image_folder")  # fmt: skip
    net.add_argument("--n", metavar="IMAGES", help="how many test images (default all)")
    zoo = parser.add_argument_group("a net of RobustBench, attacked by default with AutoAttack")
    zoo.add_argument("--robustbench", metavar="MODEL_ID", help="the net's id, such as Wong2020Fast")
    zoo.add_argument("--dataset", metavar="NAME", help="its leaderboard: cifar10 (default), cifar100, imagenet; "
                     "also the images, unless --data names others")  # fmt: skip
    zoo.add_argument("--threat", metavar="NORM", help="linf (default; eps 8/255, imagenet 4/255) or l2 (eps 0.5)")
    verdict = parser.add_argument_group("verdict")
    # One flag each, because `--verdict` takes no word after it, which would be a checkpoint.
    for flag, profile, text in (
        (
            "--verdict",
            "quick",
            "also judge whether the figure, the robust accuracy, is believable, at a tenth of the sweep's cost",
        ),
        ("--verdict=quick", "quick", argparse.SUPPRESS),
        ("--verdict=full", "full", "the same with every check"),
    ):
        verdict.add_argument(flag, dest="verdict", action="store_const", const=profile, help=text)
    strict = "exit with 3 where the figure is overstated, 1 without a verdict; implies --verdict"
    verdict.add_argument("--strict", action="store_true", help=strict)
    least = (
        "exit with 4 where less than this share of the images, such as 0.4, is robust at the recipe's eps: the worst "
        "case itself is compared, not an end of its interval"
    )
    verdict.add_argument("--min-robust", metavar="SHARE", help=least)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, see --help."""
    overrides = [word for word in arguments.words if "=" in word or word.startswith("~")]
    checkpoints = [word for word in arguments.words if word not in overrides]
    trusted = [name for o in overrides if o.startswith("trust=") for name in o[len("trust=") :].strip("[]").split(",")]
    overrides = [override for override in overrides if not override.startswith("trust=")]
    if profile := arguments.verdict or ("quick" if arguments.strict else None):
        overrides.append(f"++verdict={profile}")
    if arguments.min_robust is not None:
        overrides.append(f"++min_robust={_share(arguments.min_robust)}")
    if arguments.robustbench is not None:
        return _zoo_net(arguments, overrides, checkpoints)
    if arguments.dataset is not None or arguments.threat is not None:
        raise UsageError("--dataset and --threat go with --robustbench: they name its leaderboard")
    if arguments.model is not None:
        return _own_net(arguments, overrides, checkpoints)
    if not checkpoints:
        ways = (
            "runs/NAME or runs/NAME/checkpoints/best.ckpt [key=value ...]; for a net of yours --model my.module:build"
        )
        raise UsageError(f"which checkpoint? robustlit evaluate {ways}")
    if len(checkpoints) > 1:
        raise UsageError(f"one checkpoint at a time, got {' and '.join(checkpoints)}")
    if flags := [f"--{flag}" for flag in ("weights", "data", "n") if getattr(arguments, flag) is not None]:
        raise UsageError(f"{', '.join(flags)} go with --model, not with a checkpoint: use data=..., data.test_size=")
    from robustlit.experiment.evaluate import evaluate_checkpoint

    strict, command = arguments.strict, arguments.command
    return evaluate_checkpoint(checkpoints[0], overrides, trusted=trusted, strict=strict, command=command)


def _share(value: str) -> float:
    from robustlit.experiment.gate import read_share

    try:
        return read_share(value, "--min-robust")
    except ValueError as error:
        raise UsageError(str(error)) from None


def _own_net(arguments: argparse.Namespace, overrides: list[str], checkpoints: list[str]) -> int:
    if checkpoints:
        raise UsageError(f"either a checkpoint or --model, got {checkpoints[0]} and --model {arguments.model}")
    overrides = _with_data(arguments, overrides)
    from robustlit.experiment.evaluate import evaluate_own_net

    strict, command = arguments.strict, arguments.command
    return evaluate_own_net(arguments.model, overrides, weights=arguments.weights, strict=strict, command=command)


def _with_data(arguments: argparse.Namespace, overrides: list[str]) -> list[str]:
    """Return the overrides with what --data and --n say."""
    given = {override.partition("=")[0] for override in overrides}
    for flag, key in (("n", "data.test_size"), ("data", "data")):
        if (value := getattr(arguments, flag)) is not None:
            if key in given:
                raise UsageError(f"--{flag} and {key}= are given twice, once as each: leave one of them out")
            overrides = [f"{key}={value}", *overrides]
    return overrides


def _zoo_net(arguments: argparse.Namespace, overrides: list[str], checkpoints: list[str]) -> int:
    net = f"--robustbench {arguments.robustbench}"
    for other in (
        *checkpoints,
        *(f"--{flag}" for flag in ("model", "weights") if getattr(arguments, flag) is not None),
    ):
        raise UsageError(f"{net} gives the net with its weights: leave {other} out")
    if twice := [o for o in overrides if o.partition("=")[0] == "norm"]:
        raise UsageError(f"{net} takes its norm from --threat: --threat {twice[0].partition('=')[2]}")
    overrides = _with_data(arguments, overrides)
    dataset, threat = arguments.dataset or "cifar10", (arguments.threat or "linf").lower()
    if dataset == "imagenet" and not any(o.partition("=")[0] == "data" for o in overrides):
        raise UsageError(
            "--dataset imagenet needs images: --data image_folder data.root=FOLDER data.image_size=224, with the "
            "folders test/CLASS in the order of ImageNet's classes"
        )
    from robustlit.experiment.evaluate import evaluate_zoo_net
    from robustlit.experiment.zoo import ZooNet

    zoo = ZooNet(arguments.robustbench, dataset, threat)
    return evaluate_zoo_net(zoo, overrides, strict=arguments.strict, command=arguments.command)
