"""COCO's AP of one image: against pycocotools driven in the documented way, and where ours differs on purpose."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from mmr1_reward_server import coco_ap
from mmr1_reward_server.api import Item, Outcome, Result
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item

pytest.importorskip("pycocotools")

TASKS = builtin_tasks()
DOG, CAT = {"bbox_2d": [0, 0, 100, 100], "label": "dog"}, {"bbox_2d": [200, 0, 300, 100], "label": "cat"}


def score(predicted: Any, true: Any, **params: Any) -> Result:
    response = f"<answer>{json.dumps(predicted)}</answer>"
    item = Item(id="1", task="detection", response=response, solution=true, params={"score": "coco_ap", **params})
    return score_item(TASKS, item, max_response_chars=100_000)


def documented_ap(predicted: list[dict[str, Any]], true: list[dict[str, Any]], folder: Path) -> tuple[float, float]:
    """As pycocotools' own demo does it: through files, summarize and stats."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = {label: number for number, label in enumerate(("dog", "cat", "cow"), start=1)}

    def annotation(one: dict[str, Any]) -> dict[str, Any]:
        x1, y1, x2, y2 = one["bbox_2d"]
        return {"image_id": 7, "category_id": ids[one["label"]], "bbox": [x1, y1, x2 - x1, y2 - y1]}

    annotations = [
        {
            **annotation(one),
            "id": number,
            "iscrowd": one.get("iscrowd", 0),
            "area": annotation(one)["bbox"][2] * annotation(one)["bbox"][3],
        }
        for number, one in enumerate(true, start=1)
    ]
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    (folder / "truth.json").write_text(
        json.dumps({"images": [{"id": 7}], "categories": categories, "annotations": annotations, "info": {}})
    )
    (folder / "found.json").write_text(json.dumps([{**annotation(one), "score": one["score"]} for one in predicted]))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


@pytest.mark.parametrize("crowds", [0, 2])
def test_agrees_with_pycocotools(tmp_path: Path, crowds: int) -> None:
    draw = random.Random(0)

    def box(near: list[float] | None = None) -> list[float]:
        if near is not None:
            return [value + draw.uniform(-6, 6) for value in near]
        x, y = draw.uniform(0, 400), draw.uniform(0, 400)
        return [x, y, x + draw.uniform(20, 200), y + draw.uniform(20, 200)]

    seen = set()
    for _ in range(25):
        true = [{"bbox_2d": box(), "label": draw.choice(["dog", "cat"])} for _ in range(draw.randint(1, 8))]
        true += [{**one, "bbox_2d": box(), "iscrowd": 1} for one in true[:crowds]]
        found = [
            {
                "bbox_2d": box(one["bbox_2d"]),
                "label": draw.choice([one["label"], "cow"]),
                "score": draw.choice([0.5, 0.9]),
            }
            for one in true * 2
        ]
        ap, ap50 = documented_ap(found, true, tmp_path)
        result = score(found, true)
        assert (result.components["coco_ap"], result.components["coco_ap50"]) == pytest.approx((ap, ap50), abs=1e-12)
        assert result.reward == result.components["coco_ap"]
        assert score(found, true, score="coco_ap50").reward == result.components["coco_ap50"]
        seen.add(ap)
    assert len(seen) > 20  # the cases do differ


@pytest.mark.parametrize(
    ("predicted", "true", "ap"),
    [
        ([DOG, CAT], [DOG, CAT], 1),
        ([DOG, CAT, CAT], [DOG, CAT], 1),  # a duplicate after full recall costs nothing in AP
        ([DOG], [DOG, CAT], 0.5),
        ([{**DOG, "label": "cow"}], [DOG], 0),
        ([DOG, {**CAT, "label": "cow"}], [DOG], 1),  # nor does a category that the truth lacks
        ([{"bbox_2d": [100, 100, 0, 0], "label": "dog"}], [DOG], 0),
        ([{"bbox_2d": [100, 100, 0, 0], "label": "dog"}, DOG], [DOG], 0.5),
        ([], [DOG], 0),
        ([DOG], [], 0),
        ([], [], 1),
        ([DOG, CAT], [CAT, {**DOG, "iscrowd": 1}], 1),
        ([DOG, CAT], [CAT, {**CAT, "iscrowd": 1}], 1),
        ([DOG], [{**DOG, "iscrowd": 1}], 1),  # nothing to find, and nothing wrong
        ([CAT], [{**DOG, "iscrowd": 1}], 0),
    ],
)
def test_cases(predicted: Any, true: Any, ap: float) -> None:
    assert score(predicted, true).reward == pytest.approx(ap)
    assert score(predicted, true, score="coco_ap50").reward == pytest.approx(ap)


def test_labels_can_be_left_aside_and_scores_rank() -> None:
    assert score([{**DOG, "label": "cat"}], [DOG], match_labels=False).reward == 1
    wrong = {"bbox_2d": [400, 400, 500, 500], "label": "dog"}
    assert score([{**wrong, "score": 0.9}, {**DOG, "score": 0.1}], [DOG]).reward == pytest.approx(0.5)
    assert score([{**wrong, "score": 0.1}, {**DOG, "score": 0.9}], [DOG]).reward == 1


def test_more_than_a_hundred_objects_can_all_be_found() -> None:
    many = [{"bbox_2d": [10 * n, 0, 10 * n + 9, 9], "label": "dog"} for n in range(120)]
    assert score(many, many).reward == 1


def test_objects_of_any_size_count() -> None:
    tiny = {"bbox_2d": [0.1, 0.1, 0.2, 0.2], "label": "dog"}
    assert score([tiny], [tiny], solution_space="normalized_1", response_space="normalized_1").reward == 1
    huge = {"bbox_2d": [0, 0, 10**6, 10**6], "label": "dog"}
    assert score([huge], [huge]).reward == 1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert score([DOG], [DOG]).reward == 1
    assert capfd.readouterr() == ("", "")


def test_without_pycocotools_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    coco_ap._pycocotools.cache_clear()
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    result = score([DOG], [DOG])
    assert result.outcome is Outcome.VERIFIER_ERROR
    assert "pip install 'mmr1-reward-server[coco]'" in result.detail
