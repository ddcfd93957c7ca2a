"""The one error that an operator may raise."""


class UnsupportedError(Exception):
    """This form of the operator is not written here: the node is run by ONNX Runtime instead."""
