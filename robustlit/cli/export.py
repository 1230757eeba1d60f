"""Write the classifier of a run in a format that other programs load.

The file is loaded again and its logits are compared with the net's before it is written. Beside it lies FILE.json: the
shape and range of the pixels that it takes (its normalisation is inside), and the classes that it gives.

examples:
  %(prog)s runs/NAME                               the weights by name: torch.load(FILE, weights_only=True)
  %(prog)s runs/NAME --format onnx                 needs the packages onnx and onnxscript
  %(prog)s runs/NAME --format pt2 --out net.pt2    torch.export.load(FILE).module()
  %(prog)s runs/NAME trust=[my_package]            the checkpoint's recipe may name classes of your package
"""

import argparse

from robustlit.cli.parser import UsageError

_FORMATS = ("state_dict", "onnx", "pt2", "torchscript")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s RUN [--format FORMAT] [--out FILE] [trust=[PACKAGE]]"
    parser.add_argument("words", nargs="+", metavar="RUN", help="a run folder (its best checkpoint) or a file")
    parser.add_argument(
        "--format", default="state_dict", choices=_FORMATS, metavar="FORMAT",
        help="state_dict (default), onnx, pt2 (torch.export) or torchscript, which torch deprecates for pt2",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="where to write (default: in the run folder, named after it)")


def run(arguments: argparse.Namespace) -> int:
    """Export, print both files and return the exit code."""
    trust = [word for word in arguments.words if word.startswith("trust=")]
    runs = [word for word in arguments.words if word not in trust]
    if len(runs) != 1:
        raise UsageError(f"one run at a time, got {' and '.join(runs) or 'none'}: robustlit export runs/NAME")
    from robustlit.experiment.export import export
    from robustlit.experiment.own_net import find_modules_here

    trusted = [name for word in trust for name in word[len("trust=") :].strip("[]").split(",")]
    if trusted:
        find_modules_here()
    for file in export(runs[0], arguments.format, arguments.out, trusted=trusted):
        print(file)
    return 0
