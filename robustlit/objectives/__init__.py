"""Objectives: what a training step minimises. Method = objective + model + attack, put together in a recipe."""

from robustlit.objectives.adversarial import AdversarialTraining
from robustlit.objectives.objective import Objective, ObjectiveOutput
from robustlit.objectives.standard import Standard

__all__ = ["AdversarialTraining", "Objective", "ObjectiveOutput", "Standard"]
