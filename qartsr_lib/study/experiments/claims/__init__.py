"""The paper's claims, checked against result files by rules that are data (rules.toml)."""

from qartsr_lib.study.experiments.claims.base import CHECKS, Finding, NoData
from qartsr_lib.study.experiments.claims.ledger import (
    PAPER,
    STUDY,
    VERDICTS,
    Ledger,
    count_verdicts,
    make_ledger,
    verdict_text,
)
from qartsr_lib.study.experiments.claims.rules import Claim, Inconsistency, Rules, load_rules

__all__ = [
    "CHECKS",
    "Claim",
    "Finding",
    "Inconsistency",
    "Ledger",
    "NoData",
    "PAPER",
    "Rules",
    "STUDY",
    "VERDICTS",
    "count_verdicts",
    "load_rules",
    "make_ledger",
    "verdict_text",
]
