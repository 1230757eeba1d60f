"""The error for data that are missing, damaged or not laid out as expected."""


class DataError(RuntimeError):
    """Data that cannot be used; the message names what was expected and the way out."""
