"""Triton kernels of the integer runtime on a GPU. Empty: importing it needs no Triton, its modules do."""
