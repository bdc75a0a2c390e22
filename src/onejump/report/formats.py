"""How the report writes numbers."""

import math
from collections.abc import Callable

import pandas as pd

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _or_dash(write: Callable[[float], str]) -> Callable[[float | None], str]:
    """Write a number with `write`, with a true minus sign; a missing one as a dash, and infinity as ∞."""

    def written(value: float | None) -> str:
        if value is None or pd.isna(value):
            return "–"
        return "∞" if value == math.inf else write(value).replace("-", "−")

    return written


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _range(ends: tuple[float, float], write: Callable[[float], str]) -> str:
    """One number, or two where they differ."""
    low, high = map(write, ends)
    return low if low == high else f"{low} to {high}"


def _ratio(value: float) -> str:
    """A multiple, with decimals only for small numbers."""
    return f"{value:,.0f}×" if value >= 10 or value == int(value) else f"{value:.2g}×"


def _general(value: float) -> str:
    """Three significant digits, with a power of ten where that is shorter."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else mantissa


def _value(value: float) -> str:
    """What a cell tells the script: enough digits to compute with."""
    return "Infinity" if value == math.inf else f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


FORMATS: dict[str, Callable] = {
    "share": _or_dash(lambda value: f"{value:.3f}"),  # precision and the like: 0 to 1
    "nats": _or_dash(lambda value: f"{value:.2f}"),
    "score": _or_dash(lambda value: f"{value:.5f}"),  # neighbouring jumps' D_m differ in the fourth decimal
    "percent": _or_dash(lambda value: f"{value:.0%}"),
    "fine_percent": _or_dash(lambda value: f"{100 * value:.2g}%"),  # of what may be far below 1 %
    "count": _or_dash(lambda value: f"{value:,.0f}"),
    "ratio": _or_dash(_ratio),
    "general": _or_dash(_general),
    "duration": _or_dash(_duration),
    "megabytes": _or_dash(lambda value: f"{value:,.0f} MB"),
    "value": _value,
    "short_value": lambda value: f"{value:.4g}",
    "rule": lambda rule: rule.replace(">=", "≥"),
    "text": lambda value: "–" if pd.isna(value) else value,
    "positions": lambda group: group.replace("1+", "1 and more").replace("5+", "5 and more").replace("-", "–"),
    "count_range": lambda ends: _range(ends, FORMATS["count"]),
    "general_range": lambda ends: _range(ends, FORMATS["general"]),
}
