"""Finetuning of quantized backbones: phases, losses and one engine that every trained method uses."""
