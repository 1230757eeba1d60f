"""Defenses that wrap a trained classifier, each with the view through which to attack it."""

from robustlit.defenses.bit_depth import BitDepth
from robustlit.defenses.denoiser import Denoiser
from robustlit.defenses.detect_and_correct import DetectAndCorrect
from robustlit.defenses.jumprelu import JumpReLUDefense, RandomJumpReLUDefense
from robustlit.defenses.logit_corrector import LogitCorrector
from robustlit.defenses.logit_detector import LogitDetector
from robustlit.defenses.odds_test import OddsTest
from robustlit.defenses.smoothed import Smoothed
from robustlit.defenses.svc import LogitSVC

__all__ = [
    "BitDepth", "Denoiser", "DetectAndCorrect", "JumpReLUDefense", "LogitCorrector", "LogitDetector", "LogitSVC",
    "OddsTest", "RandomJumpReLUDefense", "Smoothed",
]  # fmt: skip
