"""Defenses: what wraps a trained classifier, each with the view through which it is to be attacked."""

from robustlit.defenses.bit_depth import BitDepth

__all__ = ["BitDepth"]
