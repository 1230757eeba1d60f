"""Attacks: frozen hyper-parameters, called as `attack(model, x, y)` or, with the details, `attack.run(model, x, y)`."""

from robustlit.attacks.attack import Attack, AttackResult, BudgetAttack
from robustlit.attacks.bim import BIM
from robustlit.attacks.fgsm import FGSM
from robustlit.attacks.mim import MIM
from robustlit.attacks.pgd import PGD

__all__ = ["BIM", "FGSM", "MIM", "PGD", "Attack", "AttackResult", "BudgetAttack"]
