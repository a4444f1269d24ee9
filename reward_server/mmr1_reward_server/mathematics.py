"""Are two mathematical answers equal? math-verify (the extra `math`) decides, on texts that are bounded first.

Its own timeouts use signals, which work in a main thread only, so they are off: whoever calls this needs a deadline.
What is refused here beforehand is what no deadline can interrupt, or what is sure to miss it: huge numbers, of which a
single operation holds the interpreter's lock, and nesting of all kinds, which takes exponential time.

It knows no task.
"""

from __future__ import annotations

import logging
import math
import re
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from .parsing import find_boxed, read_number

# Brackets within brackets. math-verify takes a second for 8 of them, minutes for 20.
MAX_NESTING = 8
# Of any number that may come up: 4,900 digits, a little more than Python itself turns into decimals.
MAX_BITS = 2**14
# A power of a sum may be multiplied out: (x + 1)^100 has 101 terms, (1 + x + y + z)^30 has 5,456.
MAX_TERMS = 1_000
_MAX_DEPTH = 200
# What makes math-verify slow beyond its length. At its limit each takes about a second at most, at three times that
# most take more than five.
MAX_BARS = 16  # |x||x|...: is a bar the first or the second of its pair?
MAX_BRACKETS = 24  # ( and [
MAX_SET_OPERATIONS = 24
MAX_SERIES = 8  # sums and products over an index, limits
MAX_INTEGRALS = 3
MAX_NESTED_FUNCTIONS = 3  # logarithms of logarithms, and so on
MAX_NESTED_PRODUCTS = 8  # a / b / c / d: quotients of quotients

_DELIMITER = re.compile(r"\$|\\boxed|\\\(|\\\[")
# LaTeX's words are not words, nor is what it sets as text: a unit, mostly.
_SET_AS_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\{[^{}]*\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{2}")
_DIGIT = re.compile(r"\d")
_LONG_NUMBER = re.compile(r"[0-9]{5}")
# Each sign before a number doubles the parser's work.
_SIGNS = re.compile(r"(?:[-+]\s?){8}")
# What is under or over another without braces around it: x_x_x. Braces count as nesting.
_TOWER = re.compile(r"(?:[_^]\s*(?:\{[^{}]*\}|[-+]?\\?[^\W_]+)\s*){5}")
_SET_OPERATION = re.compile(r"\\(?:cup|cap|setminus)|[\u222a\u2229\u2216]")
_SERIES = re.compile(r"\\(?:sum|prod|lim)|[\u2211\u220f]")
_INTEGRAL = re.compile(r"\\o?i+nt|[\u222b-\u2230]")
_GROWS_LIKE_FACTORIAL = frozenset(("factorial", "factorial2", "gamma", "Product", "binomial", "subfactorial"))


class NotInstalled(Exception):
    """math-verify is not there."""


class TooLarge(Exception):
    """More than can be compared within any deadline. Says what."""


class Expression(NamedTuple):
    """What math-verify read: `values` are its readings, at least one; `text` is the part of the answer it read."""

    values: list[Any]
    text: str


def looks_mathematical(text: str) -> bool:
    """Whether a text is a formula and nothing else: no words, and a digit or a command of LaTeX's."""
    boxed = find_boxed(text)
    text = _SET_AS_TEXT.sub(" ", text if boxed is None else boxed)
    return not _has_words(text) and (_DIGIT.search(text) is not None or _COMMAND.search(text) is not None)


def _has_words(text: str) -> bool:
    return _WORD.search(_COMMAND.sub(" ", _SET_AS_TEXT.sub(" ", text))) is not None


def read_expression(text: str, max_chars: int) -> Expression | None:
    """The last \\boxed{...} of a text, or else the last thing in it that is mathematics; None when there is nothing.

    Raises NotInstalled, and TooLarge for more than `max_chars` characters or what the limits above exclude.
    """
    verifier = _load()
    boxed = find_boxed(text)
    shown = (text if boxed is None else boxed).strip()
    if len(shown) > max_chars:
        raise TooLarge(f"{len(shown)} characters of mathematics, the limit is {max_chars}")
    _check_answer(shown)
    for form in _forms(shown, boxed is not None):
        values = verifier.parse(form, fallback_mode="no_fallback", parsing_timeout=None)
        _check_values(values)
        if values:
            return Expression(values, shown)
    return None


def read_whole(text: str, max_chars: int) -> Expression | None:
    """What math-verify reads in a text by itself, with its own defaults: as projects call it that hand it everything.

    Raises NotInstalled and TooLarge as `read_expression` does.
    """
    verifier = _load()
    if len(text) > max_chars:
        raise TooLarge(f"{len(text)} characters, the limit is {max_chars}")
    _check_text(text)
    values = verifier.parse(text, parsing_timeout=None)
    _check_values(values)
    return Expression(values, text) if values else None


def are_equal(read: Expression, true: Expression) -> bool:
    """Whether math-verify finds the two equal. Not symmetric: only of the truth is `x = 3` the same as 3."""
    return bool(_load().verify(true.values, read.values, timeout_seconds=None))


def is_installed() -> bool:
    """Whether math-verify is there. Does not load it."""
    return find_spec("math_verify") is not None


@cache
def _load() -> Any:
    try:
        import math_verify
    except ImportError:
        raise NotInstalled("math-verify is not installed: pip install 'mmr1-reward-server[math]'") from None
    # It warns once that its timeouts are off, which is the intention, and tells of every text it cannot read.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)
    return math_verify


def _forms(text: str, boxed: bool) -> list[str]:
    """The forms to try. Plain text such as `x^2+1` is nothing to math-verify until it is boxed."""
    number = read_number(text)
    if number is not None and "e" not in repr(number):
        # Words and full-width digits are numbers here as in counting.
        return [repr(int(number) if number == int(number) else number)]
    if _DELIMITER.search(text):
        return [text]
    in_box = f"\\boxed{{{text}}}"
    if not _has_words(text):
        return [in_box, text]
    # In a box of ours, the letters of "3 apples" would be six variables.
    return [text, in_box] if boxed else [text]


def _check_text(text: str) -> None:
    depth = deepest = 0
    for bracket in re.findall(r"[][(){}]", text):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise TooLarge(f"brackets {deepest} deep, the limit is {MAX_NESTING}")
    if _SIGNS.search(text):
        raise TooLarge("signs upon signs")
    _check_number("unions, intersections and differences of sets", _SET_OPERATION.findall(text), MAX_SET_OPERATIONS)
    # These are computed while they are parsed.
    if ("binom" in text or "choose" in text) and _LONG_NUMBER.search(text):
        raise TooLarge("a binomial coefficient of large numbers")


def _check_answer(text: str) -> None:
    """What an answer has no need of. In a whole response, with its prose and tables, all of this may be."""
    _check_text(text)
    if _TOWER.search(text):
        raise TooLarge("powers of powers, or indices of indices")
    _check_number("vertical bars", re.findall(r"\|", text), MAX_BARS)
    _check_number("opening brackets", re.findall(r"[(\[]", text), MAX_BRACKETS)
    _check_number("sums, products and limits", _SERIES.findall(text), MAX_SERIES)
    _check_number("integrals", _INTEGRAL.findall(text), MAX_INTEGRALS)


def _check_number(name: str, found: list[str], limit: int) -> None:
    if len(found) > limit:
        raise TooLarge(f"{len(found)} {name}, the limit is {limit}")


def _check_values(values: list[Any]) -> None:
    """What has been read is yet to be compared, which may take longer."""
    for value in values:
        if _bits(value, _MAX_DEPTH) > MAX_BITS:
            raise TooLarge(f"a number of more than {MAX_BITS} bits")
        _check_nesting(value, 0, 0)


def _check_nesting(node: Any, num_functions: int, num_products: int) -> None:
    """Of an expression that `_bits` has found shallow enough to go through."""
    args = getattr(node, "args", ())
    num_functions += bool(getattr(node, "is_Function", False))
    num_products += getattr(node, "is_Mul", False) and any(getattr(arg, "is_Mul", False) for arg in args)
    if num_functions > MAX_NESTED_FUNCTIONS:
        raise TooLarge(f"functions of functions, more than {MAX_NESTED_FUNCTIONS} deep")
    if num_products > MAX_NESTED_PRODUCTS:
        raise TooLarge(f"products or quotients of others, more than {MAX_NESTED_PRODUCTS} deep")
    for arg in args:
        _check_nesting(arg, num_functions, num_products)


def _bits(node: Any, depth: int) -> int:
    """No fewer than the bits of the largest number that computing an expression brings up. Computes none of them."""
    if depth == 0:
        raise TooLarge("an expression too deep")
    if getattr(node, "is_Rational", False):
        return int(max(abs(node.p).bit_length(), node.q.bit_length()))
    if getattr(node, "is_Float", False):
        return int(abs(node)).bit_length() if node.is_finite else 1
    sizes = [_bits(arg, depth - 1) for arg in getattr(node, "args", ())]
    name = type(node).__name__
    if name == "Pow":
        _check_power_of_sum(*node.args)
        return max(sizes[0], 1) * _power_of_two(sizes[1])
    if name == "exp":
        return 2 * _power_of_two(sizes[0])
    if name in _GROWS_LIKE_FACTORIAL:
        return sum(sizes) * _power_of_two(max(sizes))
    return max(1, sum(sizes))


def _power_of_two(bits: int) -> int:
    if bits > MAX_BITS.bit_length():
        raise TooLarge(f"a number of more than {MAX_BITS} bits")
    return 1 << bits


def _check_power_of_sum(base: Any, exponent: Any) -> None:
    if not (base.is_Add and base.free_symbols and exponent.is_Integer):
        return
    power, num_terms = min(abs(exponent.p), MAX_TERMS), len(base.args)
    if num_terms > MAX_TERMS or math.comb(power + num_terms - 1, num_terms - 1) > MAX_TERMS:
        raise TooLarge(f"a power of a sum, of more than {MAX_TERMS} terms")
