"""Proof that a sweep on several workers survives: faults struck at real processes, results compared and counted."""
