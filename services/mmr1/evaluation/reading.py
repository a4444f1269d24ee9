"""OCR: how near a text that was read is to the true one, as Fox (arXiv 2405.14295) and GOT-OCR (2409.01704) measure it.

Both publish the same definitions: the edit distance of characters over the longer text's length; precision, recall and
F1 of the *sets* of words; BLEU (Papineni et al., 2002) and METEOR (Lavie and Agarwal, 2007) of each page by nltk, all
averaged over pages. Two things differ here. METEOR matches equal words and equal Porter stems and no synonyms: those
need WordNet, which is no part of nltk's package. And where they cut Chinese into words with jieba, each character of a
script without spaces is a word of its own. Texts are made ready by the judge's own functions: all measures of an
answer are of the same two texts. Knows no response and no task.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from mmr1_reward_server.text import edit_similarity, normalise, strip_fence
from mmr1_reward_server.truths import number_as_text

NOTHING_READ = {"f1": 0.0, "precision": 0.0, "recall": 0.0, "bleu": 0.0, "meteor": 0.0}

# Kana, Han with its extensions, Thai, Lao, Tibetan, Myanmar and Khmer, and the signs that go with them.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3001-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def compare_texts(read: str, true: str) -> dict[str, float]:
    """F1, precision, recall, BLEU and METEOR, each in [0, 1]. Two texts without a word agree in all."""
    found, expected = words_of(read), words_of(true)
    if not found and not expected:
        return dict.fromkeys(NOTHING_READ, 1.0)
    if not found or not expected:
        return dict(NOTHING_READ)
    return {**overlap(found, expected), "bleu": bleu(found, expected), "meteor": meteor(found, expected)}


def nearest_text(read: str, solution: Any) -> str:
    """Of the texts of a solution the one that the judge has compared with `read`, and as it did: by edit distance.

    Args:
        read: as the judge has parsed it, without a fence and normalised.
        solution: a text or a number, or a list of them.
    """
    texts = solution if isinstance(solution, list) else [solution]
    ready = [normalise(strip_fence(str(number_as_text(text)))) for text in texts]
    return ready[0] if len(ready) == 1 else max(ready, key=lambda text: edit_similarity(read, text))


def words_of(text: str) -> list[str]:
    """What stands between spaces; of a script without spaces each character."""
    return _WORD.findall(unicodedata.normalize("NFC", text))


def overlap(found: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of the sets of words: how often a word occurs does not count."""
    read, true = set(found), set(expected)
    common = len(read & true)
    return {
        "f1": 2 * common / (len(read) + len(true)),
        "precision": common / len(read),
        "recall": common / len(true),
    }


def bleu(found: Sequence[str], expected: Sequence[str]) -> float:
    """BLEU-4 of one text, without smoothing: 0 when it shares no run of four words with the true one."""
    from nltk.translate.bleu_score import sentence_bleu

    with warnings.catch_warnings():  # it says of each such text that it has none
        warnings.simplefilter("ignore")
        return float(sentence_bleu([list(expected)], list(found)))


def meteor(found: Sequence[str], expected: Sequence[str]) -> float:
    """METEOR of one text with alpha 0.9, beta 3, gamma 0.5. A single right word is worth 0.5: one chunk of one."""
    from nltk.translate.meteor_score import meteor_score

    stemmer, synonyms = _stemmer()
    return float(meteor_score([list(expected)], list(found), stemmer=stemmer, wordnet=synonyms))


class _NoSynonyms:
    """Stands where nltk asks WordNet."""

    def synsets(self, _: str) -> list[Any]:
        return []


@cache
def _stemmer() -> tuple[Any, _NoSynonyms]:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer(), _NoSynonyms()
