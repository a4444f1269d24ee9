"""Are two mathematical answers equal? math-verify (the extra `math`) decides, on texts that are bounded first.

Which part of a text is mathematics is found by math-verify's own patterns, so that the limits here hold for that part
and not for the prose, tables and lists around it. Plain arithmetic, which math-verify would give to Python's `eval`, is
read in `arithmetic`.

Its own timeouts take the alarm of the process, so they are off, and `in_time` stands in their place. What is refused
beforehand is what no deadline can interrupt, or what is sure to miss it: huge numbers, of which a single operation
holds the interpreter's lock, and nesting of all kinds, which takes exponential time.

It knows no task.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

from .arithmetic import Unreadable, read_arithmetic
from .deadlines import OutOfTime, within_processor_time
from .parsing import find_boxed, read_number

T = TypeVar("T")

# Brackets within brackets. math-verify takes a second for 8 of them, minutes for 20.
MAX_NESTING = 8
# Of any number that may come up: 4,900 digits, a little more than Python itself turns into decimals.
MAX_BITS = 2**14
# A power of a sum may be multiplied out: (x + 1)^100 has 101 terms, (1 + x + y + z)^30 has 5,456.
MAX_TERMS = 1_000
# Of a text without \\boxed, so many characters at its end are searched for mathematics.
MAX_SEARCHED = 8_000
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
# Each sign before a number doubles the parser's work. A rule of dashes is before nothing.
_SIGNS = re.compile(r"(?:[-+]\s?){8}[^\W_]|(?:[-+]\s?){8}[\\({\[.]")
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


class TooSlow(TooLarge):
    """It has been tried, and took too long."""


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

    Raises NotInstalled, and TooLarge when that has more than `max_chars` characters or what the limits above exclude.
    """
    _load()
    boxed = find_boxed(text)
    shown = (_end_of(text) if boxed is None else boxed).strip()

    def check(part: str) -> None:
        if len(part) > max_chars:
            raise TooLarge(f"{len(part)} characters of mathematics, the limit is {max_chars}")
        _check_answer(part)

    if boxed is not None:
        check(shown)
    forms = _forms(shown, boxed is not None)
    for form in forms:
        try:
            found = _parse(form, check)
        except TooLarge:
            if form == forms[-1] or "\n" not in shown:
                raise
            continue  # lines of which not all are mathematics
        if found is not None:
            return Expression(found.values, shown if len(shown) <= max_chars else found.text)
    return None


def read_whole(text: str) -> Expression | None:
    """What math-verify reads in a text by itself, with its own defaults: as projects call it that hand it everything.

    Raises NotInstalled and TooLarge as `read_expression` does, for fewer reasons; the time grows with the square of the
    text, if need be.
    """
    _load()
    return _parse(text, _check_text, text_will_do=True)


def in_time(seconds: float, compute: Callable[[], T]) -> T:
    """What `compute` returns; off the main thread it may take all the time it wants.

    Raises NotInstalled, TooSlow when it takes more than so much processor time, and what it raises.
    """
    _load()
    try:
        return within_processor_time(seconds, compute)
    except OutOfTime:
        _clear_caches()
        raise TooSlow(f"takes more than {seconds:g} s to read or to compare") from None


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
    # The first of all takes long, which is not held against it.
    math_verify.verify(math_verify.parse("$1$", parsing_timeout=None), [], timeout_seconds=None)
    return math_verify


@cache
def _patterns() -> list[list[tuple[re.Pattern[str], Any]]]:
    """What math-verify looks for, with what it takes it for: by groups, the first group that is found counts."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig
    from math_verify.parser import get_extraction_regexes

    groups: dict[int, list[tuple[re.Pattern[str], Any]]] = {}
    for patterns, target in get_extraction_regexes([LatexExtractionConfig(), ExprExtractionConfig()]):
        for pattern, priority in patterns:
            groups.setdefault(priority, []).append((pattern, target))
    return [groups[priority] for priority in sorted(groups)]


def _clear_caches() -> None:
    """What was given up may have left some of these half filled."""
    from math_verify import parser
    from sympy.core.cache import clear_cache

    clear_cache()
    for cached in (parser.parse_latex_cached, parser.extract_latex):
        cached.cache_clear()


def _parse(text: str, check: Callable[[str], None], *, text_will_do: bool = False) -> Expression | None:
    """What math-verify's `parse` gives: of the first group that has any, the last match that can be read.

    `check` may raise TooLarge for a part before it is read. `text_will_do`: if nothing can be read, a part's own text.
    """
    unread: list[str] = []
    for patterns in _patterns():
        matches = [(match, target) for pattern, target in patterns for match in pattern.finditer(text)]
        matches.sort(key=lambda found: (found[0].end(), -found[0].start()), reverse=True)
        for match, target in matches:
            parts = _parts(match)
            for part in parts:
                check(part)
            try:
                value, shown = _read_match(match, target)
            except Exception:  # as its own `parse` does
                return None
            if shown:
                unread.append(shown)
            if value is not None:
                values = [value, unread[0]] if text_will_do and unread else [value]
                _check_values(values)
                return Expression(values, " and ".join(parts))
    return Expression([unread[0]], unread[0]) if text_will_do and unread else None


def _parts(match: re.Match[str]) -> list[str]:
    """What of a match is read, without the words that lead there."""
    parts = []
    for name, part in match.groupdict().items():
        if part and "percent" not in name:
            boxed = find_boxed(part) if name.endswith("latexBoxed") else None
            parts.append((part if boxed is None else boxed).strip())
    return parts


def _read_match(match: re.Match[str], target: Any) -> tuple[Any, str]:
    """(What was read or None, its text)."""
    from math_verify.parser import extract_match

    groups = match.groupdict()
    if not groups.get("expr"):
        value, shown = extract_match(match, target)
        return value, shown
    try:
        return read_arithmetic(groups["expr"]), groups["expr"]
    except Unreadable:
        return None, groups["expr"]


def _end_of(text: str) -> str:
    """The last MAX_SEARCHED characters, from the beginning of a line or at least of a word on."""
    if len(text) <= MAX_SEARCHED:
        return text
    text = text[-MAX_SEARCHED:]
    line = text.find("\n")
    if 0 <= line < MAX_SEARCHED // 2:
        return text[line:]
    return text[max(text.find(" "), 0) :]


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
        # The last of several lines: what a calculation ends with.
        return [in_box, *(f"\\boxed{{{line}}}" for line in text.splitlines()[-1:] if line != text), text]
    # In a box of ours, the letters of "3 apples" would be six variables.
    return [text, in_box] if boxed else [text]


def _check_text(text: str) -> None:
    """Of a part that is about to be read."""
    depth = deepest = 0
    for bracket in re.findall(r"[][(){}]", text):
        # A closing bracket too many must not make up for an opening one.
        depth = depth + 1 if bracket in "([{" else max(depth - 1, 0)
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
    """What an answer has no need of, beyond what math-verify itself cannot do."""
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
