"""What each command says of itself with --help; `figures` and `dashboard` have parsers that say it for them."""

from __future__ import annotations

HELP = """robustlit: train image classifiers that withstand adversarial examples, and measure honestly how far they do.

  {program} recipe=NAME [key=value ...]
                                                     train by a recipe, then attack the best checkpoint
  robustlit evaluate CHECKPOINT [key=value ...] [--verdict[=full]] [--strict]
                                                     attack a checkpoint, or a run folder's best one, again
  robustlit evaluate --model my.module:build [--weights FILE] [--data NAME] [--n IMAGES] [key=value ...] [--verdict]
                                                     attack the net that a function of yours returns
  robustlit compare RUN RUN ... [--out FILE.html] [--intersect]     lay runs side by side on one page
  robustlit figures RUN [RUN ...] [--out FOLDER] [--style report] [--attack NAME] [--distance l2 ...] [--undefended RUN]
                                                     draw a run's figures again, or several runs in one
  robustlit dashboard [--project P] [--entity E] [--name N] [--url VIEW] [--attacks A,B] [--runs RUN ...] [--dry-run]
                                                     a W&B view in which runs rank and overlay
  robustlit sync [RUN ...] [--dry-run]               upload runs that W&B kept offline, or say how
  robustlit recipes                                  list the recipes

`robustlit COMMAND --help` says what a command takes.

"""

OVERRIDES = """\
Any value of a recipe can be overridden: eps=8/255 optimizer.lr=1e-3 data.train_size=1000 trainer.max_epochs=2
  groups      model= data= trainer= logger=(wandb, csv, none) sweep=(linf, l2, nine, worst_case, none, ...)
  the run     name= or run_dir=, seed=, verdict=quick, ckpt_path=runs/NAME to resume
  processes   trainer.devices=2 trainer.accelerator=cpu; on a cluster trainer.devices=8 trainer.num_nodes=4
  many runs   -m eps=0.1,0.2,0.3 (one after the other)
  your own    --config-dir FOLDER or ROBUSTLIT_RECIPES=FOLDER for a folder of recipes of yours
  to look     --cfg job prints the composed recipe; --hydra-help says what else Hydra can do

A run leaves runs/NAME/: config.yaml, checkpoints/, evaluation/ (per-example table, curves, figures), results.json.
"""

_TRAIN = """{program} recipe=NAME [key=value ...]

Trains by a recipe, then attacks the best checkpoint. `robustlit recipes` lists the recipes.

"""

_OF = {
    "evaluate": """robustlit evaluate CHECKPOINT [key=value ...] [--verdict[=full]] [--strict]
robustlit evaluate --model MODULE:FUNCTION [--weights FILE] [--data NAME] [--n IMAGES] [key=value ...] [--verdict ...]

Attacks a trained net again: a checkpoint, or a run folder's best one (runs/NAME), by the recipe that it holds; or the
net that a function of yours returns, by default with the worst case at eps and the nearest adversarials in L2.

  --model MODULE:FUNCTION   the function takes nothing and returns a torch.nn.Module: pixels in [0, 1] to logits
  --weights FILE            a state dict for it, as torch.save(net.state_dict(), FILE) writes it
  --data NAME               mnist (the default), fashion_mnist, cifar10, cifar100, svhn, image_folder
  --n IMAGES                so many of the test images (default all)
  --verdict[=quick|full]    also judge whether the figures are to be believed
  --strict                  exit with 3 where that verdict is FAIL, with 1 where there is none; implies --verdict

  sweep=linf eps=8/255 data.test_size=1000 name=again      any value of the recipe; a group by its name
  ~sweep.attacks.bim                                       leaves one out
  trust=[PACKAGE]                                          a package of yours that the checkpoint's recipe may name

Writes runs/NAME-eval/: config.yaml, evaluation/ (per-example table, curves, figures), results.json.
""",
    "compare": """robustlit compare RUN RUN ... [--out FILE.html] [--intersect]

Lays runs side by side on one page that needs no network: a table that sorts, curves, what differs in their settings,
the examples that only one gets wrong. RUN is a run folder; runs/* takes all.

  --out FILE.html   where to write it (default compare.html)
  --intersect       runs on different test images are compared on those that all have
""",
    "sync": """robustlit sync [RUN ...] [--dry-run]

Uploads the W&B runs that were kept offline or broke off, of the run folders given, else of all in runs/. Where you are
not logged in to W&B it says how.

  --dry-run   list what would be uploaded
""",
    "recipes": """robustlit recipes [--config-dir FOLDER]

Lists the recipes, each with its first line.

  --config-dir FOLDER   also those of a folder of yours (ROBUSTLIT_RECIPES=FOLDER does it for good)
""",
}


def help_of(command: str | None, program: str) -> str | None:
    """What to print for --help; None for a command whose own parser prints it.

    Args:
        command: the command, None for robustlit itself.
        program: how `train` was called, "robustlit train" or "python train.py".
    """
    if command is None:
        return HELP.format(program=program) + OVERRIDES
    if command == "train":
        return _TRAIN.format(program=program) + OVERRIDES
    return _OF.get(command)
