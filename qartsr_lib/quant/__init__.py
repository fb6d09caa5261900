"""Quantization core: fake quantization, range rules, quantized layers, and the verb that applies them."""
