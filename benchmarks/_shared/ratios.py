"""Ratios as a table."""

from collections.abc import Mapping

from relic.columns import in_columns


def ratio_table(quotients: Mapping[str, float], digits: int = 2) -> str:
    """One line per ratio."""
    return in_columns([(name, f"{quotient:.{digits}f}") for name, quotient in quotients.items()])
