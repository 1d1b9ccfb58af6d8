"""What correctors share: the contract, rules by domain, columns, symmetric matrices, the file."""

from evenfield.correct.base.columns import (
    control_rows,
    domain_rows,
    numbers,
    reference_rows,
)
from evenfield.correct.base.contract import (
    CORRECTORS,
    Corrector,
    State,
    Unseen,
    check_range,
    keep_features,
    some_names,
    warn,
)
from evenfield.correct.base.domains import DomainCorrector
from evenfield.correct.base.scale import ScaleByDomain

__all__ = [
    "CORRECTORS",
    "Corrector",
    "DomainCorrector",
    "ScaleByDomain",
    "State",
    "Unseen",
    "check_range",
    "control_rows",
    "domain_rows",
    "keep_features",
    "numbers",
    "reference_rows",
    "some_names",
    "warn",
]
