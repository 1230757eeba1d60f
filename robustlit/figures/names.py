"""Names that fit beside the axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

LONGEST = 36  # characters: a third of a figure's width
_CONTEXT = 8  # characters that stay of a common beginning and of a common end


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return each name with a form of at most `LONGEST` characters, all different: itself where it is short enough.

    Of long names the beginning and the end that they share are left out first, then the middle.
    """
    names = list(dict.fromkeys(names))
    long = [name for name in names if len(name) > LONGEST]
    head = _shared(long)
    rests = [name[head:] for name in long]
    tail = _shared([rest[::-1] for rest in rests])
    short = {name: name for name in names if len(name) <= LONGEST}
    for name, rest in zip(long, rests, strict=True):
        own = f"{'…' * bool(head)}{rest[: len(rest) - tail]}{'…' * bool(tail)}"
        text, number = _cut(own, LONGEST), 2
        while text in short.values():
            end = f" ({number})"
            text, number = _cut(own, LONGEST - len(end)) + end, number + 1
        short[name] = text
    return {name: short[name] for name in names}


def names_in_full(short: Mapping[str, str]) -> list[str]:
    """Return a sentence with the full name of each that was shortened, if any was."""
    cut = [f"{text} is {name}" for name, text in short.items() if text != name]
    return [f"Names in full: {'; '.join(cut)}."] if cut else []


def _shared(names: Sequence[str]) -> int:
    """Return how many characters of the beginning that several names share can be left out."""
    same = takewhile(lambda characters: len({*characters}) == 1, zip(*names, strict=False))
    return max(0, len([*same]) - _CONTEXT) if len(names) > 1 else 0


def _cut(text: str, longest: int) -> str:
    """Return a text without so much of its middle that `longest` characters are left."""
    if len(text) <= longest:
        return text
    start = longest // 2
    return f"{text[:start]}…{text[len(text) - (longest - start - 1) :]}"
