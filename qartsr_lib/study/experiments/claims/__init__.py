"""Notebook 08. The paper's claims, checked against result files by rules that are data (rules.toml)."""

from qartsr_lib.study.experiments.claims.ledger import load_rules, make_ledger

__all__ = ["load_rules", "make_ledger"]
