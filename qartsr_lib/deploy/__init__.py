"""Quantized models as they are shipped: codes in few bits, and the programs that run them."""
