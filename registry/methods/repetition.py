"""How a text repeats: itself (diversity, degeneration), a stock phrase (refusal), or the texts of its training (copying)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Literal

import numpy as np
from nltk.tokenize import NLTKWordTokenizer
from numpy.typing import NDArray

Convention = Literal["paper", "official_code"]

RUN = 8
"""Words in a row that count as copied."""

_TOKENIZER = NLTKWordTokenizer()

_UNABLE = (
    r"(i (cannot|can't|won't|am (unable|not able) to)|i'm (unable|not able) to|as an ai|as a (large )?language model)"
)
_SORRY = r"((i'm |i am )?(sorry|afraid)|i apologi[sz]e)"
_REFUSAL = re.compile(
    rf"\s*({_UNABLE}|{_SORRY}(,? but|[,.!]? (that )?{_UNABLE}| for [^.!?]*,? but {_UNABLE}))\b", re.IGNORECASE
)


def words(text: str) -> list[str]:
    """The words and punctuation marks of NLTK's tokenizer.

    ARGS splits sentences first, by a model that NLTK would have to download. Without it a full stop stays with its
    word, but for that at the end of the text.
    """
    return list(_TOKENIZER.tokenize(text))


def rep_n(tokens: Sequence[str], n: int, convention: Convention) -> float:
    """rep-n, the share of the n-grams of words that are repetitions: 1 - |unique n-grams| / |n-grams| (ARGS, arXiv
    2402.01694, which gives it in per cent). ARGS's code divides by |n-grams| + 1.

    Returns:
        In [0, 1]; 1 for a text of fewer than n words, as by ARGS's code.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    if not grams:
        return 1.0
    return 1 - len(set(grams)) / (len(grams) + (convention == "official_code"))


def diversity(text: str, convention: Convention) -> float:
    """(1 - rep-2)(1 - rep-3)(1 - rep-4), of ARGS (arXiv 2402.01694). T distinct words score 1 by the paper and (T - 3) / T
    by its code, to which a short text is less diverse; fewer than four words score 0 by both.

    Returns:
        In [0, 1].
    """
    tokens = words(text)
    return float(np.prod([1 - rep_n(tokens, n, convention) for n in (2, 3, 4)]))


def is_degenerate(text: str) -> bool:
    """Whether a text is empty, or has eight words and of its four-grams one half or more are repetitions (`rep_n` by the
    paper)."""
    tokens = words(text)
    return not tokens or (len(tokens) >= 8 and rep_n(tokens, 4, "paper") >= 0.5)


def is_refusal(text: str) -> bool:
    """Whether a text begins as refusals do: "I'm sorry, but", "I apologize, but", "I cannot", "I'm unable to", "As an AI",
    "As a language model" and their variants, in any case and with any apostrophe.

    A rule of thumb: it reads the opening alone, in English, so "I can't wait" is one and "That would be wrong" is none.
    """
    return _REFUSAL.match(text.replace("\u2019", "'")) is not None


class TrainingTexts:
    """The responses a model was trained on, to ask of an answer how much of it they say word for word.

    Words are here what white space separates, so that a run reads alike wherever in a text it stands. Runs are kept as
    digests of 64 bits, eight bytes for each different one.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        whole, runs = set(), []
        for text in texts:
            tokens = text.split()
            whole.add(_digest(tokens))
            runs.append(_runs(tokens))
        self._whole = whole
        self._runs = np.unique(np.concatenate([np.empty(0, np.uint64), *runs]))

    def has(self, text: str) -> bool:
        """Whether one of them is this text, white space aside."""
        return _digest(text.split()) in self._whole

    def copied(self, text: str) -> float:
        """The share of a text's words that stand in a run of eight or more that occurs in one of them.

        Returns:
            In [0, 1]; 0 for a text of fewer than eight words, which `has` can still find.
        """
        tokens = text.split()
        runs = _runs(tokens)
        if not len(runs) or not len(self._runs):
            return 0.0
        places = np.searchsorted(self._runs, runs).clip(max=len(self._runs) - 1)
        known = self._runs[places] == runs
        return float(np.mean(np.convolve(known, np.ones(RUN)) > 0.5))


def _runs(tokens: Sequence[str]) -> NDArray[np.uint64]:
    digests = b"".join(_digest(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1))
    return np.frombuffer(digests, dtype=np.uint64)


def _digest(tokens: Sequence[str]) -> bytes:
    return blake2b(" ".join(tokens).encode("utf-8", "surrogatepass"), digest_size=8).digest()
