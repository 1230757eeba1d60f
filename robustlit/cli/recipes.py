"""List the recipes, each with its first line.

examples:
  %(prog)s
  %(prog)s --config-dir my_recipes
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-cd", "--config-dir", action="append", default=[], metavar="FOLDER",
        help="also the recipes in this folder; ROBUSTLIT_RECIPES=FOLDER adds it permanently",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    from robustlit.experiment.recipes import first_line, recipe_files

    files = recipe_files(arguments.config_dir)
    width = max(map(len, files))
    for name, path in files.items():
        print(f"{name:<{width}}  {first_line(path)}")
    return 0
