"""Is a robust accuracy to be believed?"""

from robustlit.evaluation.verdict.check import FAIL, INCONCLUSIVE, PASS, Check, Verdict
from robustlit.evaluation.verdict.judge import verdict

__all__ = ["FAIL", "INCONCLUSIVE", "PASS", "Check", "Verdict", "verdict"]
