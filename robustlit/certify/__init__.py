"""Certificates: lower bounds of robustness, which no attack can break."""

from robustlit.certify.bounds import UnknownLayerError
from robustlit.certify.certificate import Certificate, Certified
from robustlit.certify.crown import CROWN, CROWNIBP
from robustlit.certify.ibp import IBP
from robustlit.certify.smoothing import RandomizedSmoothing

__all__ = ["CROWN", "CROWNIBP", "IBP", "Certificate", "Certified", "RandomizedSmoothing", "UnknownLayerError"]
