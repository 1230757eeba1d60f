"""Train by a recipe: `python train.py recipe=pgd_adv_train [key=value ...]`, the same as `robustlit train`."""

from robustlit.cli import main

if __name__ == "__main__":
    main("train")
