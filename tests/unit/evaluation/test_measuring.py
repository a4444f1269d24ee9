"""Every metric of every task against values by hand, and the bootstrap's intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mmr1.evaluation import Answer, Metric, TaskResult, measure
from mmr1.evaluation.boxes import found_boxes, true_boxes
from mmr1.evaluation.coco import CocoEvaluation
from mmr1.evaluation.resampling import drawn_counts, ratios
from mmr1.evaluation.tasks import metrics_of
from mmr1_reward_server.api import Item
from mmr1_reward_server.rewards import builtin_tasks
from mmr1_reward_server.scoring import score_item

TASKS = builtin_tasks()


def answer(problem: int, task: str, solution: Any, parsed: Any, sample: int = 0, **more: Any) -> Answer:
    """One that the judge could read, unless `parsed` is None."""
    return Answer(
        problem=problem,
        sample=sample,
        task=task,
        response="",
        solution=solution,
        is_valid=parsed is not None,
        parsed=parsed,
        **{"is_truncated": False, "reward": 0.0, **more},
    )


def values(result: TaskResult) -> dict[str, float | None]:
    return {name: metric.value for name, metric in result.metrics.items()}


def one_result(*answers: Answer) -> TaskResult:
    (result,) = measure(answers, seed=0, resamples=50)
    return result


def test_counting() -> None:
    """Right; 2 too many; no number where 4 are: as far off as 0."""
    result = one_result(
        answer(0, "counting", 3, {"count": 3}, reward=1.0),
        answer(1, "counting", "5", {"count": 7}),
        answer(2, "counting", 4, None, is_truncated=True),
    )
    assert (result.task, result.headline, result.num_problems, result.num_samples) == ("counting", "accuracy", 3, 1)
    assert next(iter(result.metrics)) == "accuracy"
    assert values(result) == pytest.approx({"accuracy": 1 / 3, "mae": 2.0, "invalid": 1 / 3, "truncated": 1 / 3})


def test_a_true_count_in_words_has_no_part_in_the_error() -> None:
    result = one_result(
        answer(0, "counting", "three", {"count": 3}, reward=1.0), answer(1, "counting", 1, {"count": 5})
    )
    assert values(result) == pytest.approx({"accuracy": 0.5, "mae": 4.0, "invalid": 0.0, "truncated": 0.0})


def test_grounding() -> None:
    overlaps = (0.96, 0.75, 0.5, 0.49)
    answers = [
        answer(place, "grounding", [0, 0, 9, 9], {"bbox_2d": [0, 0, 9, 9]}, components={"iou": iou})
        for place, iou in enumerate(overlaps)
    ]
    result = one_result(*answers, answer(4, "grounding", [0, 0, 9, 9], None))
    assert result.headline == "mean_iou"
    assert values(result) == pytest.approx(
        {"mean_iou": 2.7 / 5, "acc_50": 3 / 5, "acc_75": 2 / 5, "acc_95": 1 / 5, "invalid": 1 / 5, "truncated": 0.0}
    )


def test_ocr() -> None:
    """A text that is right, one of five characters with one wrong, and none where a text is."""
    result = one_result(
        answer(0, "ocr", "a b c d", {"text": "a b c d"}, components={"edit": 1.0}),
        answer(1, "ocr", "a b c", {"text": "a x c"}, components={"edit": 0.8}),
        answer(2, "ocr", "a", None),
    )
    found = values(result)
    assert next(iter(found)) == result.headline == "one_minus_edit_distance"
    assert found["one_minus_edit_distance"] == pytest.approx(1.8 / 3)
    assert found["edit_distance"] == pytest.approx(1.2 / 3)
    assert found["accuracy"] == result.accuracy == pytest.approx(1 / 3)
    assert found["f1"] == found["precision"] == found["recall"] == pytest.approx((1 + 2 / 3) / 3)
    assert found["bleu"] == pytest.approx(1 / 3)
    # All four words in one run: 1 - 0.5 / 4^3. Two of three, in two runs: 2/3 of 1 - 0.5 * (2/2)^3.
    assert found["meteor"] == pytest.approx((1 - 0.5 / 64 + 2 / 3 * 0.5) / 3)


def test_of_several_true_texts_the_nearest_counts() -> None:
    result = one_result(answer(0, "ocr", ["x y", "a b"], {"text": "a b"}, components={"edit": 1.0}))
    assert values(result)["f1"] == 1.0


def judged(response: str, solution: Any) -> Answer:
    """As the reward server judges it with the params of an evaluation."""
    item = Item(id="1", task="ocr", response=response, solution=solution, params=dict(metrics_of("ocr").params))
    verdict = score_item(TASKS, item, max_response_chars=100_000)
    return answer(0, "ocr", solution, verdict.parsed, components=verdict.components, reward=verdict.reward)


def test_all_metrics_of_an_answer_are_of_the_same_true_text() -> None:
    """The first is nearer by edit distance, of the second's words all are there, in another order."""
    several = ["a b c d x", "e d c b a"]
    for solution in (several, several[::-1]):
        assert values(one_result(judged("a b c d e", solution))) == values(one_result(judged("a b c d e", several[0])))
    assert values(one_result(judged("a b c d e", several)))["f1"] == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    "true", ["```\na b c d e\n```", "```text\na  b c\nd e```", " a b c d e\n", ["x", "```a b c d e```"]]
)
def test_a_true_text_is_made_ready_as_the_judge_does(true: Any) -> None:
    right = values(one_result(judged("a b c d e", "a b c d e")))
    assert right["f1"] == right["accuracy"] == 1.0 and right["bleu"] == pytest.approx(1.0)
    assert values(one_result(judged("a b c d e", true))) == right
    assert values(one_result(judged("```\na b c d e\n```", true))) == right


def test_a_true_number_is_read_as_the_judge_does() -> None:
    assert values(one_result(judged("3", 3.0)))["f1"] == 1.0


def test_meteor_alone_takes_upper_and_lower_case_for_the_same() -> None:
    small = values(one_result(judged("hello the big world now", "hello the big world now")))
    large = values(one_result(judged("Hello The Big World Now", "hello the big world now")))
    assert large["meteor"] == small["meteor"] and large["meteor"] > 0.99
    assert large["f1"] == 0.0 and large["bleu"] < 0.01 and large["one_minus_edit_distance"] < 1.0


def test_detection() -> None:
    """Two of three found and one box where nothing is: 4 / (3 + 3). Nothing readable where two are: 0 / 2."""
    true = [{"bbox_2d": [0, 0, 10, 10], "label": "7"}, {"bbox": [20, 0, 30, 10], "label": "Cat "}]
    third = {"bbox_2d": [40, 0, 50, 10], "label": "dog"}
    found = [true[0], {"bbox_2d": [20, 0, 30, 10], "label": "cat"}, {"bbox_2d": [70, 0, 80, 10], "label": "dog"}]
    counts = {"num_matched": 2.0, "num_predicted": 3.0, "num_true": 3.0}
    result = one_result(
        answer(0, "detection", [*true, third], found, components=counts), answer(1, "detection", true, None)
    )
    assert result.headline == "f1_50" and result.accuracy is None
    metrics = values(result)
    assert metrics["f1_50"] == pytest.approx(4 / 8)
    # "7" and "cat" have each one of two boxes, found first: precision 1 up to a recall of 1/2, so 51 of 101 places.
    assert [metrics[name] for name in ("ap", "ap50", "ap75")] == pytest.approx([(51 / 101 + 51 / 101 + 0) / 3] * 3)
    assert metrics["ar"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert metrics["invalid"] == 0.5


def test_detection_of_the_truth_itself_is_one() -> None:
    true = [{"bbox_2d": [0, 0, 10, 10], "label": "7"}, {"bbox_2d": [20, 5, 30, 10], "label": "9"}]
    counts = {"num_matched": 2.0, "num_predicted": 2.0, "num_true": 2.0}
    metrics = values(one_result(answer(0, "detection", true, true, components=counts)))
    assert all(metrics[name] == pytest.approx(1.0, abs=1e-12) for name in ("f1_50", "ap", "ap50", "ap75", "ar"))


def test_crowds_in_f1_are_cocos() -> None:
    """Counts of 40 images against those that pycocotools' matching at an IoU of 0.5 gives."""
    chance = np.random.default_rng(0)

    def box(x: float, y: float, side: float) -> dict[str, Any]:
        x, y = x + chance.uniform(-3, 3), y + chance.uniform(-3, 3)
        return {"bbox_2d": [x, y, x + side, y + side], "label": str(chance.choice(["a", "b"]))}

    answers, truths, readings = [], [], []
    for place in range(40):
        true = [box(60 * column, 0, 30) for column in range(4)] + [{**box(0, 100, 150), "iscrowd": 1}]
        near = [box(60 * column, 0, 30) for column in range(3)]
        found = near + [box(x, y, 30) for x in (5, 60, 130) for y in (110, 200)] + [box(400, 400, 9)]
        response = f"<answer>{json.dumps(found)}</answer>"
        params = dict(metrics_of("detection").params)
        item = Item(id="1", task="detection", response=response, solution=true, params=params)
        verdict = score_item(TASKS, item, max_response_chars=100_000)
        answers.append(answer(place, "detection", true, verdict.parsed, components=verdict.components))
        truths.append(true_boxes(answers[-1]))
        readings.append(found_boxes(answers[-1]))
    evaluation = CocoEvaluation(truths, readings)._evaluation
    matched = counted = 0
    for one in filter(None, evaluation.evalImgs):
        ignored = one["dtIgnore"][0] != 0
        matched += int(((one["dtMatches"][0] != 0) & ~ignored).sum())
        counted += int((~ignored).sum())
    assert 0 < matched < 120 and matched < counted < 40 * 10 - 40, "some are found, some are wrong, some are ignored"
    assert values(one_result(*answers))["f1_50"] == pytest.approx(2 * matched / (counted + 40 * 4), abs=1e-12)


def test_an_answer_that_cannot_be_read_misses_no_crowd() -> None:
    true = [{"bbox_2d": [0, 0, 10, 10], "label": "a"}, {"bbox_2d": [0, 0, 90, 90], "label": "a", "iscrowd": 1}]
    right = {"num_matched": 1.0, "num_predicted": 1.0, "num_true": 1.0}
    said = [answer(0, "detection", true, true[:1], components=right), answer(1, "detection", true, None)]
    assert values(one_result(*said))["f1_50"] == pytest.approx(2 / 3)


def test_nothing_readable_on_an_empty_image_is_one_wrong_box() -> None:
    empty = {"num_matched": 0.0, "num_predicted": 0.0, "num_true": 0.0}
    right = {"num_matched": 1.0, "num_predicted": 1.0, "num_true": 1.0}
    box = [{"bbox_2d": [0, 0, 10, 10], "label": "7"}]
    said = [answer(0, "detection", box, box, components=right), answer(1, "detection", [], [], components=empty)]
    assert values(one_result(*said))["f1_50"] == 1.0
    assert values(one_result(said[0], answer(1, "detection", [], None)))["f1_50"] == pytest.approx(2 / 3)


def test_boxes_come_to_pixels_of_the_original() -> None:
    """As Qwen2-VL says them, in thousandths, and as Qwen2.5-VL does, in pixels of the resized image."""
    said = answer(0, "detection", '[{"bbox_2d": [64, 48, 320, 240]}]', [{"bbox_2d": [100, 100, 500, 500]}])
    thousandths = replace(said, params={"response_space": "normalized_1000"}, image_size=(640, 480))
    assert found_boxes(thousandths)[0].corners == pytest.approx((64, 48, 320, 240))
    assert true_boxes(thousandths)[0].corners == (64, 48, 320, 240)
    resized = replace(said, params={"response_space": "absolute", "resized_size": [1000, 500]}, image_size=(640, 480))
    assert found_boxes(resized)[0].corners == pytest.approx((64, 96, 320, 480))
    assert found_boxes(said)[0].corners == (100, 100, 500, 500)


def test_another_task_has_its_mean_reward() -> None:
    result = one_result(answer(0, "mathematics", "1", "1", reward=1.0), answer(1, "mathematics", "1", "2", reward=0.25))
    assert values(result) == {"mean_reward": 0.625, "accuracy": 0.5, "invalid": 0.0, "truncated": 0.0}


def test_tasks_are_measured_apart_and_samples_averaged() -> None:
    """Two answers to each of two problems, one of four right; and a task of one problem beside them."""
    of_counting = [
        answer(problem, "counting", 3, {"count": 3 + wrong}, sample, reward=float(not wrong))
        for problem, sample, wrong in [(0, 0, 0), (0, 1, 1), (2, 0, 2), (2, 1, 3)]
    ]
    found = measure([*of_counting, answer(1, "ocr", "a", {"text": "a"}, components={"edit": 1.0})], seed=0)
    assert [(result.task, result.num_problems, result.num_samples) for result in found] == [
        ("counting", 2, 2),
        ("ocr", 1, 1),
    ]
    assert found[0].metrics["accuracy"].value == 0.25 and found[0].metrics["mae"].value == 1.5
    with pytest.raises(ValueError, match="different numbers of answers"):
        measure(of_counting[:3], seed=0)


def test_the_ap_of_samples_is_averaged() -> None:
    true = [{"bbox_2d": [0, 0, 10, 10], "label": "7"}]
    hit, miss = {"num_matched": 1.0, "num_predicted": 1.0, "num_true": 1.0}, {"num_matched": 0.0, "num_predicted": 0.0}
    result = one_result(
        answer(0, "detection", true, true, components=hit),
        answer(0, "detection", true, [], 1, components={**miss, "num_true": 1.0}),
    )
    assert result.metrics["ap"] == Metric(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))  # type: ignore[arg-type]


def test_the_interval_of_a_share_is_the_binomials() -> None:
    """400 problems, 30 % right: 1.96 standard errors are 4.5 points."""
    right = (np.arange(400) % 10 < 3).astype(np.float64)[:, None]
    (metric,) = ratios(right, np.ones_like(right), 4000, seed=3)
    graded = np.arange(400.0)[:, None]
    assert metric.value == pytest.approx(0.3)
    assert metric.low == pytest.approx(0.3 - 0.0449, abs=0.005) and metric.high == pytest.approx(0.3449, abs=0.005)
    of_seeds = [ratios(graded, np.ones_like(graded), 100, seed) for seed in (3, 3, 4)]
    assert of_seeds[0] == of_seeds[1] != of_seeds[2]


def test_an_interval_is_of_problems_and_not_of_their_samples() -> None:
    """Eight equal samples of each problem say no more than one."""

    def width(num_samples: int) -> float:
        answers = [
            answer(place, "counting", 1, {"count": 1}, sample, reward=float(place % 2))
            for place in range(100)
            for sample in range(num_samples)
        ]
        metric = measure(answers, seed=0)[0].metrics["accuracy"]
        assert metric.low is not None and metric.high is not None
        return metric.high - metric.low

    assert width(8) == pytest.approx(width(1))


def test_counts_are_of_as_many_problems_and_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(drawn_counts(50, 20, seed=1)))
    assert whole.shape == (20, 50) and (whole.sum(axis=1) == 50).all()
    monkeypatch.setattr("mmr1.evaluation.resampling._CHUNK", 150)
    parts = list(drawn_counts(50, 20, seed=1))
    assert len(parts) == 7 and (np.concatenate(parts) == whole).all()
