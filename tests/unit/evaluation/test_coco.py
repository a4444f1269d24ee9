"""COCO's AP against pycocotools itself: on a perturbed ground truth, on the truth itself, and for resampled images."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmr1.evaluation import coco
from mmr1.evaluation.coco import Box, CocoEvaluation
from mmr1.evaluation.resampling import drawn_counts

LABELS = ("cat", "dog", "7")
PLACES = [0, 1, 2, 8]  # AP, AP50, AP75 and AR of at most 100 boxes, in pycocotools' summary


def drawn(chance: Generator, num_images: int = 30, crowds: float = 0.0) -> list[list[Box]]:
    """Up to nine boxes an image, some images without any; `crowds` is the share of them."""

    def box() -> Box:
        x, y, w, h = chance.uniform([0, 0, 40, 40], [400, 300, 160, 160])
        return Box((x, y, x + w, y + h), str(chance.choice(LABELS)), is_crowd=bool(chance.random() < crowds))

    return [[box() for _ in range(chance.integers(0, 10))] for _ in range(num_images)]


def perturbed(chance: Generator, true: Sequence[Sequence[Box]], *, scored: bool) -> list[list[Box]]:
    """Moved by some pixels; some missed, some twice, some under another label, some where nothing is."""

    def one(box: Box) -> Box:
        corners = np.array(box.corners) + chance.normal(0, 5, 4)
        label = str(chance.choice([*LABELS, "nobody's"])) if chance.random() < 0.1 else box.label
        return Box(tuple(map(float, corners)), label, float(chance.random()) if scored else 1.0)

    found = []
    for boxes in true:
        kept = [one(box) for box in boxes for _ in range(chance.choice([0, 1, 1, 1, 1, 2]))]
        found.append(kept + [one(Box((600.0, 600.0, 640.0, 650.0), "dog"))] * int(chance.integers(0, 2)))
    return found


def its_evaluation(true: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]]) -> Any:
    """As its own documentation uses it: a dataset, `loadRes`, and the summary."""
    number = {label: place for place, label in enumerate(sorted({box.label for boxes in true for box in boxes}), 1)}

    def entries(boxes_of: Sequence[Sequence[Box]]) -> list[dict[str, Any]]:
        found = []
        for image, boxes in enumerate(boxes_of):
            for box in boxes:
                if box.label in number:
                    x1, y1, x2, y2 = box.corners
                    place = {"image_id": image, "category_id": number[box.label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
                    found.append({**place, "score": box.score, "iscrowd": int(box.is_crowd)})
        return found

    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(true))],
        "categories": [{"id": place} for place in number.values()],
        "annotations": [
            {**entry, "id": place, "area": entry["bbox"][2] * entry["bbox"][3]}
            for place, entry in enumerate(entries(true), start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(entries(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def of_pycocotools(true: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]]) -> np.ndarray[Any, Any]:
    return np.array([its_evaluation(true, found).stats[place] for place in PLACES])


@pytest.mark.parametrize("digits", [None, 1])  # with one digit most scores are another's too
@pytest.mark.parametrize("seed", range(4))
def test_a_perturbed_truth_has_pycocotools_own_values(seed: int, digits: int | None) -> None:
    chance = np.random.default_rng(seed)
    true = drawn(chance)
    found = perturbed(chance, true, scored=True)
    if digits:
        found = [[replace(box, score=round(box.score, digits)) for box in boxes] for boxes in found]
    evaluation = CocoEvaluation(true, found)
    own = of_pycocotools(true, found)
    assert 0.1 < own[0] < 0.9, "perturbed enough to tell, and not beyond recognition"
    assert evaluation.values() == pytest.approx(own, abs=1e-6)
    (once,) = evaluation.resampled([np.ones((1, len(true)))])
    assert once == pytest.approx(own, abs=1e-6), "every image once"


@pytest.mark.parametrize("seed", range(4))
def test_without_scores_each_labels_curve_has_one_point(seed: int) -> None:
    """Its recall is what pycocotools counts; from that and the number of boxes follows the precision."""
    chance = np.random.default_rng(seed)
    true = drawn(chance)
    found = perturbed(chance, true, scored=False)
    own = its_evaluation(true, found)
    recall = own.eval["recall"][:, :, 0, -1]  # [thresholds, labels]; of all areas, with at most 100 boxes
    labels = sorted({box.label for boxes in true for box in boxes})
    num_true = np.array([sum(box.label == label for boxes in true for box in boxes) for label in labels])
    num_found = np.array([sum(box.label == label for boxes in found for box in boxes) for label in labels])
    reached = (own.params.recThrs[:, None, None] <= recall).sum(axis=0) / 101
    ap = (recall * num_true / num_found * reached).mean(axis=1)
    assert 0.1 < ap.mean() < 0.9
    assert CocoEvaluation(true, found).values() == pytest.approx([ap.mean(), ap[0], ap[5], recall.mean()], abs=1e-9)


def test_without_scores_the_order_of_the_rows_does_not_matter() -> None:
    """Ten images with both boxes found, ten with one box where nothing is."""
    true = [[Box((0, 0, 10, 10), "a"), Box((20, 0, 30, 10), "a")] for _ in range(20)]
    found = [boxes if place < 10 else [Box((50, 50, 60, 60), "a")] for place, boxes in enumerate(true)]
    counts = np.concatenate(list(drawn_counts(20, 5, seed=1)))
    expected = [2 / 3 * 51 / 101] * 3 + [1 / 2]
    for order in (range(20), range(19, -1, -1), np.random.default_rng(0).permutation(20)):
        evaluation = CocoEvaluation([true[place] for place in order], [found[place] for place in order])
        assert evaluation.values() == pytest.approx(expected, abs=1e-12)
        in_order = evaluation.resampled([counts[:, list(order)]])
        assert in_order == pytest.approx(CocoEvaluation(true, found).resampled([counts]), abs=1e-12)
    assert of_pycocotools(true, found)[0] - of_pycocotools(true[::-1], found[::-1])[0] > 0.1, "as it would else"


@pytest.mark.parametrize("seed", range(4))
def test_crowds_are_ignored_as_pycocotools_ignores_them(seed: int) -> None:
    """Also where a label has no true box but crowds."""
    chance = np.random.default_rng(seed)
    true = drawn(chance, crowds=0.3)
    true[0].append(Box((0.0, 0.0, 200.0, 200.0), "bird", is_crowd=True))
    found = [[replace(box, is_crowd=False) for box in boxes] for boxes in perturbed(chance, true, scored=True)]
    in_crowds = [(crowd, chance.uniform(size=2)) for boxes in true for crowd in boxes if crowd.is_crowd]
    for (crowd, (x, y)), boxes in zip(in_crowds, found, strict=False):
        left, top = crowd.corners[0] + 20 * x, crowd.corners[1] + 20 * y
        boxes.append(Box((left, top, left + 15, top + 15), crowd.label, float(chance.random())))
    own = of_pycocotools(true, found)
    evaluation = CocoEvaluation(true, found)
    assert evaluation.values() == pytest.approx(own, abs=1e-6)
    (once,) = evaluation.resampled([np.ones((1, len(true)))])
    assert once == pytest.approx(own, abs=1e-6)
    as_objects = [[replace(box, is_crowd=False) for box in boxes] for boxes in true]
    assert abs(of_pycocotools(as_objects, found)[0] - own[0]) > 0.01, "it makes a difference"


def test_only_what_is_found_in_its_labels_crowd_is_ignored() -> None:
    crowd, there = Box((0, 0, 100, 100), "a", is_crowd=True), Box((200, 0, 210, 10), "a")
    within, beside = [Box((x, 0.0, x + 10, 10.0), "a") for x in (5.0, 30.0)], Box((300, 0, 310, 10), "a")
    assert CocoEvaluation([[crowd, there]], [[there, *within]]).values() == pytest.approx(np.ones(4))
    assert CocoEvaluation([[crowd, there]], [[there, *within, beside]]).values() == pytest.approx([0.5, 0.5, 0.5, 1])
    other = replace(crowd, label="b")
    assert CocoEvaluation([[other, there]], [[there, *within]]).values() == pytest.approx([1 / 3] * 3 + [1])
    assert np.isnan(CocoEvaluation([[crowd]], [within]).values()).all(), "a crowd is no true box"


def test_the_truth_against_itself_is_one() -> None:
    true = drawn(np.random.default_rng(0))
    assert CocoEvaluation(true, true).values() == pytest.approx(np.ones(4), abs=1e-12)


def test_a_resample_is_the_dataset_with_images_left_out_and_repeated() -> None:
    chance = np.random.default_rng(5)
    true = drawn(chance, 12)
    found = perturbed(chance, true, scored=True)  # no two scores are equal, so the order of images does not matter
    counts = np.concatenate(list(drawn_counts(12, 6, seed=1)))
    resampled = CocoEvaluation(true, found).resampled([counts])
    for row, values in zip(counts, resampled, strict=True):
        images = [image for image, times in enumerate(row) for _ in range(int(times))]
        own = of_pycocotools([true[image] for image in images], [found[image] for image in images])
        assert values == pytest.approx(own, abs=1e-6)


def test_what_is_not_there_at_all() -> None:
    box = Box((0.0, 0.0, 10.0, 10.0), "cat")
    assert CocoEvaluation([[box]], [[]]).values() == pytest.approx(np.zeros(4))
    assert CocoEvaluation([[box]], [[Box((0.0, 0.0, 10.0, 10.0), "dog")]]).values() == pytest.approx(np.zeros(4))
    assert CocoEvaluation([[box]], [[Box((10.0, 10.0, 0.0, 0.0), "cat")]]).values() == pytest.approx(np.zeros(4))
    nothing_true = CocoEvaluation([[]], [[box]])
    assert np.isnan(nothing_true.values()).all() and np.isnan(nothing_true.resampled([np.ones((2, 1))])).all()


def test_resamples_in_parts_are_the_same_and_take_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(3)
    true = drawn(chance, 40)
    found = perturbed(chance, [boxes * 4 for boxes in true], scored=True)
    evaluation = CocoEvaluation(true, found)
    (counts,) = drawn_counts(40, 1000, seed=1)

    def peak() -> tuple[int, np.ndarray[Any, Any]]:
        tracemalloc.start()
        values = evaluation.resampled([counts])
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size, values

    whole, values = peak()
    monkeypatch.setattr(coco, "_AT_ONCE", 5000)  # a few resamples each time
    parts, same = peak()
    assert np.array_equal(values, same) and parts < whole / 3
    monkeypatch.setattr(coco, "_AT_ONCE", 1)
    assert np.array_equal(values[:50], evaluation.resampled([counts[:50]]))
