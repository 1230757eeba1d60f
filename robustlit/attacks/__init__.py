"""Attacks: frozen dataclasses, called as `attack(model, x, y)` or, for a full result, `attack.run(model, x, y)`."""

from robustlit.attacks.advgan import AdvGAN
from robustlit.attacks.apgd import APGD
from robustlit.attacks.attack import Attack, AttackResult, BudgetAttack
from robustlit.attacks.auto_attack import AutoAttack
from robustlit.attacks.bim import BIM
from robustlit.attacks.bpda import BPDA
from robustlit.attacks.carlini_wagner import CarliniWagner
from robustlit.attacks.ddn import DDN
from robustlit.attacks.deepfool import DeepFool
from robustlit.attacks.eot import EOT
from robustlit.attacks.evolution import EvolutionStrategies
from robustlit.attacks.fab import FAB
from robustlit.attacks.fgsm import FGSM
from robustlit.attacks.joint import JointAttack
from robustlit.attacks.jsma import JSMA
from robustlit.attacks.logit_matching import LogitMatching
from robustlit.attacks.mim import MIM
from robustlit.attacks.nearest_l2 import NearestL2
from robustlit.attacks.newtonfool import NewtonFool
from robustlit.attacks.pgd import PGD
from robustlit.attacks.square import Square
from robustlit.attacks.transfer import Transfer
from robustlit.attacks.worst_case import WorstCase

__all__ = [
    "APGD", "BIM", "BPDA", "DDN", "EOT", "FAB", "FGSM", "JSMA", "MIM", "PGD", "AdvGAN", "Attack", "AttackResult",
    "AutoAttack", "BudgetAttack", "CarliniWagner", "DeepFool", "EvolutionStrategies", "JointAttack", "LogitMatching",
    "NearestL2", "NewtonFool", "Square", "Transfer", "WorstCase",
]  # fmt: skip
