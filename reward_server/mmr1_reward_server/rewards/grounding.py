"""grounding: where is it? One box in the response against the true one. Several boxes are what `detection` is for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema

from ..api import Example, Item, Outcome, Result
from ..box_parsing import Region, read_regions
from ..boxes import giou, iou, reaches
from ..coordinates import (
    BOX_SCHEMA,
    TEXT_SCHEMA,
    BoxTuple,
    CoordinateParams,
    check_within_image,
    from_text,
    read_true_box,
    to_solution_space,
)
from ..parsing import find_answer
from ..registry import InvalidOutput, Sample, Task, Verdict


def _read_solution(solution: object) -> BoxTuple:
    """A box, or a list that holds just one; or the JSON text of either."""
    solution = from_text(solution)
    if isinstance(solution, list) and len(solution) == 1:
        return read_true_box(solution[0])
    return read_true_box(solution)


_ONE_BOX = {"anyOf": [BOX_SCHEMA, TEXT_SCHEMA, {"type": "array", "items": BOX_SCHEMA, "minItems": 1, "maxItems": 1}]}
OneBox = Annotated[BoxTuple, BeforeValidator(_read_solution), WithJsonSchema(_ONE_BOX)]


class GroundingParams(CoordinateParams):
    score: Literal["iou", "iou_squared", "giou", "threshold"] = Field(
        "iou", description="IoU; its square; GIoU (-1 to 1); or 1 when the IoU is at least `threshold`, else 0"
    )
    threshold: float = Field(0.5, gt=0, le=1, description="the least IoU that counts, for score threshold")


def floor_for(params: GroundingParams) -> float:
    return -1.0 if params.score == "giou" else 0.0


def read_prediction(response: str) -> Region:
    """The box that a response gives. Raises InvalidOutput for none, or several different ones within answer tags."""
    answer = find_answer(response)
    boxes = read_regions(answer.text).boxes
    where = "between the answer tags" if answer.tagged else "in the response"
    if not boxes:
        raise InvalidOutput(f"no box {where}")
    # Free text may think of several and ends with its result; tags are there to hold one result only.
    if answer.tagged and len({box.coordinates for box in boxes}) > 1:
        raise InvalidOutput(
            f"{len(boxes)} different boxes {where}, where one is expected", [b.as_json() for b in boxes]
        )
    return boxes[-1]


def score(sample: Sample[BoxTuple, GroundingParams]) -> Verdict:
    params, true = sample.params, sample.solution
    check_within_image(true, params, sample.image_size)
    factor_x, factor_y = to_solution_space(params, sample.image_size)
    box = read_prediction(sample.response)
    x1, y1, x2, y2 = box.coordinates
    predicted = (x1 * factor_x, y1 * factor_y, x2 * factor_x, y2 * factor_y)
    overlap = iou(predicted, true)
    components = {
        "iou": overlap,
        "iou_squared": overlap * overlap,
        "giou": giou(predicted, true),
        "threshold": 1.0 if reaches(overlap, params.threshold) else 0.0,
    }
    inverted = "; its corners are in the wrong order" if x1 > x2 or y1 > y2 else ""
    detail = f"IoU {overlap:.3g}{inverted}"
    return Verdict(components[params.score], components, {"bbox_2d": list(box.coordinates)}, detail)


GROUNDING = Task(
    name="grounding",
    summary="The box in the last <answer>...</answer>, or the last one of the response, against the true box.",
    formula="iou: area of the intersection / area of the union. iou_squared: its square. giou: IoU - (hull - union) / "
    "hull, the hull being the smallest box around both; its floor is -1, that of the others 0. threshold: 1 if "
    "IoU >= `threshold` else 0. An inverted or empty predicted box has IoU 0.",
    floor=0.0,
    floor_for=floor_for,
    solution=TypeAdapter(OneBox),
    params=GroundingParams,
    score=score,
    example=Example(
        item=Item(
            id="1",
            task="grounding",
            response='<answer>[{"bbox_2d": [100, 250, 500, 750], "label": "the red cup"}]</answer>',
            solution=[64, 120, 320, 600],
            params={"response_space": "normalized_1000"},
            image_size=(640, 480),
        ),
        result=Result(
            id="1",
            outcome=Outcome.OK,
            reward=0.5,
            components={"iou": 0.5, "iou_squared": 0.25, "giou": 0.5, "threshold": 1.0},
            parsed={"bbox_2d": [100.0, 250.0, 500.0, 750.0]},
            detail="IoU 0.5",
        ),
    ),
)
