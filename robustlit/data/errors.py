"""The error of this folder: data that are missing, damaged or not laid out as expected."""


class DataError(RuntimeError):
    """Data that cannot be used as they are; the message names what was expected and the way out."""
