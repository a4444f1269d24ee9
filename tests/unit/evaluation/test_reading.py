"""OCR's word metrics against values by hand, and against nltk's own functions as Fox and GOT-OCR call them."""

from __future__ import annotations

import pytest
from nltk.metrics import f_measure, precision, recall
from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.meteor_score import meteor_score

from mmr1.evaluation.reading import NOTHING_READ, bleu, compare_texts, meteor, words_of

TRUE = "the cat sat on the mat and the dog slept"
READ = "the cat sat on a mat and the dogs slept"


def test_sets_of_words_by_hand() -> None:
    """8 different words are true (the, cat, sat, on, mat, and, dog, slept), 9 were read, 7 are in both."""
    compared = compare_texts(READ, TRUE)
    assert compared["precision"] == pytest.approx(7 / 9)
    assert compared["recall"] == pytest.approx(7 / 8)
    assert compared["f1"] == pytest.approx(14 / 17)
    read, true = set(READ.split()), set(TRUE.split())
    assert compared["precision"] == pytest.approx(precision(true, read))
    assert compared["recall"] == pytest.approx(recall(true, read))
    assert compared["f1"] == pytest.approx(f_measure(true, read))


def test_how_often_a_word_occurs_does_not_count() -> None:
    assert compare_texts("a a a b", "b a")["f1"] == 1.0


def test_bleu_by_hand() -> None:
    """Of 10 words 8 match, of 9 pairs 5, of 8 runs of three 3, of 7 runs of four 1; both texts are equally long."""
    expected = (8 / 10 * 5 / 9 * 3 / 8 * 1 / 7) ** 0.25
    assert bleu(READ.split(), TRUE.split()) == pytest.approx(expected)
    assert bleu(READ.split(), TRUE.split()) == pytest.approx(sentence_bleu([TRUE.split()], READ.split()))
    assert bleu(TRUE.split(), TRUE.split()) == pytest.approx(1.0)


def test_bleu_is_zero_without_a_common_run_of_four_words() -> None:
    assert bleu(["50718"], ["50718"]) == pytest.approx(0.0, abs=1e-12)
    assert bleu(list("507"), list("507")) == pytest.approx(0.0, abs=1e-12)
    assert bleu(list("5071"), list("5071")) == pytest.approx(1.0)


def test_meteor_by_hand() -> None:
    """Of six words five match, "dogs" by its stem: in two runs, before and after the wrong one."""
    fmean = (5 / 6 * 5 / 6) / (0.9 * 5 / 6 + 0.1 * 5 / 6)
    found = meteor(words_of("one cat saw two dogs sleep"), words_of("one cat and two dog sleep"))
    assert found == pytest.approx(fmean * (1 - 0.5 * (2 / 5) ** 3))
    assert meteor(["a"], ["a"]) == pytest.approx(0.5)
    assert meteor(["a"], ["b"]) == 0.0


def test_meteor_is_nltks_without_synonyms() -> None:
    class Empty:
        def synsets(self, _: str) -> list[str]:
            return []

    for read, true in [(READ, TRUE), ("mat the on sat cat", TRUE), ("Slept DOG", TRUE)]:
        assert meteor(read.split(), true.split()) == pytest.approx(
            meteor_score([true.split()], read.split(), wordnet=Empty())
        )


def test_texts_without_words() -> None:
    assert compare_texts("", " \n") == dict.fromkeys(NOTHING_READ, 1.0)
    assert compare_texts("", "a") == NOTHING_READ
    assert compare_texts("a", "") == NOTHING_READ


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert words_of("two  apples,\nplease") == ["two", "apples,", "please"]
    assert words_of("我有3 apples") == ["我", "有", "3", "apples"]
    assert words_of("사과 두 개") == ["사과", "두", "개"]
    assert words_of("e\u0301t\u00e9") == words_of("\u00e9te\u0301"), "however its accents are written"
