"""Objectives: what a training step minimises. Method = objective + model + attack, put together in a recipe."""

from robustlit.objectives.adversarial import AdversarialTraining
from robustlit.objectives.class_similarity import class_mean_similarity, confusion_similarity, similarity_embeddings
from robustlit.objectives.crown_ibp import CROWNIBPTraining
from robustlit.objectives.embedding_regression import EmbeddingRegression
from robustlit.objectives.gaussian_noise import GaussianNoise
from robustlit.objectives.ibp import IBPTraining
from robustlit.objectives.label_embedding import SoftLabelEmbedding
from robustlit.objectives.label_smoothing import LabelSmoothing
from robustlit.objectives.mart import MART
from robustlit.objectives.mtl_ibp import MTLIBP
from robustlit.objectives.n_fgsm import NFGSM
from robustlit.objectives.objective import Objective, ObjectiveOutput
from robustlit.objectives.pcl import PCL
from robustlit.objectives.sabr import SABR
from robustlit.objectives.standard import Standard
from robustlit.objectives.trades import TRADES
from robustlit.objectives.weight_perturbation import AdversarialWeightPerturbation

__all__ = [
    "MART", "MTLIBP", "NFGSM", "PCL", "SABR", "TRADES", "AdversarialTraining", "AdversarialWeightPerturbation",
    "CROWNIBPTraining", "EmbeddingRegression", "GaussianNoise", "IBPTraining", "LabelSmoothing", "Objective",
    "ObjectiveOutput", "SoftLabelEmbedding", "Standard", "class_mean_similarity", "confusion_similarity",
    "similarity_embeddings",
]  # fmt: skip
