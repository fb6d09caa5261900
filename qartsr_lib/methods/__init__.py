"""Quantization methods, each in its own file: METHODS.get(name).build(backbone, bits, images)."""

from qartsr_lib.methods.base import METHODS, Method, MethodResult

__all__ = ["METHODS", "Method", "MethodResult"]
