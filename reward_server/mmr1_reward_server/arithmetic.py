"""Plain arithmetic as SymPy's objects: 1/2, 3 * (4 - 1), 2^10. Nothing is evaluated, neither as code nor as a number.

math-verify would have Python's `eval` read it. It knows no LaTeX, no letters and no other notation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 32  # of brackets, signs and powers within one another

_TOKEN = re.compile(r"\s*+([0-9]++(?:\.[0-9]*+)?+|\.[0-9]++|\*\*|[-+*/^()])")


class Unreadable(Exception):
    """The text is no such arithmetic."""


def read_arithmetic(text: str) -> Any:
    """The expression that a text is, by Python's precedence; `^` is a power. Raises Unreadable. Takes SymPy."""
    return _Reader(text).read()


@dataclass(frozen=True, slots=True)
class _Chain:
    """A sum or a product as it is written, which SymPy's parser makes one of when it stands in another of its kind."""

    kind: Any  # SymPy's Add or Mul
    parts: tuple[Any, ...]

    @classmethod
    def of(cls, kind: Any, *values: Any) -> _Chain:
        parts: list[Any] = []
        for value in values:
            parts += value.parts if isinstance(value, cls) and value.kind is kind else [value]
        return cls(kind, tuple(parts))


def _built(value: Any) -> Any:
    """SymPy's object of a chain; anything else is one."""
    return value.kind(*map(_built, value.parts), evaluate=False) if isinstance(value, _Chain) else value


class _Reader:
    """The state of one pass."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        self._place = 0
        self._depth = 0
        position, text = 0, text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise Unreadable
            self._tokens.append(match.group(1))
            position = match.end()

    def read(self) -> Any:
        value = self._sum()
        if self._place < len(self._tokens):
            raise Unreadable
        return _built(value)

    def _next(self, *wanted: str) -> str | None:
        """Takes the next token if it is one of these."""
        token = self._tokens[self._place] if self._place < len(self._tokens) else None
        if token not in wanted:
            return None
        self._place += 1
        return token

    def _sum(self) -> Any:
        from sympy import Add, Integer, Mul

        value = self._product()
        while sign := self._next("+", "-"):
            term = self._product()
            if sign == "-":
                term = _Chain(Mul, (Integer(-1), term))
            value = _Chain.of(Add, value, term)
        return value

    def _product(self) -> Any:
        from sympy import Integer, Mul, Pow

        value = self._signed()
        while sign := self._next("*", "/"):
            factor = self._signed()
            if sign == "/":
                factor = Pow(_built(factor), Integer(-1), evaluate=False)
            value = _Chain.of(Mul, value, factor)
        return value

    def _signed(self) -> Any:
        from sympy import Integer, Mul

        sign = self._next("+", "-")
        if sign is None:
            return self._power()
        value = _built(self._deeper(_Reader._signed))  # behind a sign it is a chain of its own
        if sign == "+":
            return value
        return -value if value.is_Number else Mul(Integer(-1), value, evaluate=False)

    def _power(self) -> Any:
        from sympy import Pow

        base = self._atom()
        if self._next("**", "^") is None:
            return base
        return Pow(_built(base), _built(self._deeper(_Reader._signed)), evaluate=False)

    def _atom(self) -> Any:
        from sympy import Float, Integer

        if self._next("("):
            value = self._deeper(_Reader._sum)
            if self._next(")") is None:
                raise Unreadable
            return value
        token = self._tokens[self._place] if self._place < len(self._tokens) else ""
        if not token or token[0] not in "0123456789.":
            raise Unreadable
        self._place += 1
        if "." in token:
            return Float(token)
        if token[0] == "0" and token.strip("0"):
            raise Unreadable  # 007 is no number in Python
        return Integer(token)

    def _deeper(self, read: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable
        value = read(self)
        self._depth -= 1
        return value
