"""Reading boxes and points: every form that models write, what is none of them, and arbitrary text."""

# ruff: noqa: RUF001 (full-width digits and brackets are what is tested)

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmr1_reward_server.box_parsing import MAX_DEPTH, MAX_REGIONS, Region, read_regions
from mmr1_reward_server.registry import InvalidOutput

BOX = (1.0, 2.0, 3.0, 4.0)
OTHER = (5.0, 6.0, 7.0, 8.0)


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]', [Region(BOX, "dog")]),
        ('```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "dog"}\n]\n```', [Region(BOX, "dog")]),
        ('Sure: {"label": "dog", "bbox": [1,2,3,4]}, that is it.', [Region(BOX, "dog")]),
        ('{"bbox_2d":[1,2,3,4],"label":"dog"}{"bbox_2d":[5,6,7,8]}', [Region(BOX, "dog"), Region(OTHER)]),
        ('{"bbox_2d": [1,2,3,4], "label": "dog", "score": 0.25}', [Region(BOX, "dog", 0.25)]),
        ('{"score": 1e-1, "BBOX": [1,2,3,4]}', [Region(BOX, None, 0.1)]),
        ("[{'bbox_2d': [1,2,3,4], 'label': 'dog'}]", [Region(BOX, "dog")]),
        ("{'bbox_2d': (1,2,3,4), 'label': 'dog\\'s'}", [Region(BOX, "dog's")]),
        ("{bbox_2d: [1,2,3,4], label: 'dog'}", [Region(BOX, "dog")]),
        ('{"objects": [{"bbox": [1,2,3,4], "label": "dog"}]}', [Region(BOX, "dog")]),
        ('{"bbox_2d": [[1,2,3,4],[5,6,7,8]], "label": "dog"}', [Region(BOX, "dog"), Region(OTHER, "dog")]),
        ('{"label": "a \\"[5,6,7,8]\\" {", "bbox": [1,2,3,4]}', [Region(BOX, 'a "[5,6,7,8]" {')]),
        ('{"label": "caf\\u00e9\\\\", "bbox": [1,2,3,4]}', [Region(BOX, "café\\")]),
        ('{"label": "\\ud800", "bbox": [1,2,3,4]}', [Region(BOX, "?")]),
        ('{"label": "\\q", "bbox": [1,2,3,4]}', [Region(BOX, "\\q")]),
        ('{"label": null, "bbox": [1,2,3,4]}', [Region(BOX)]),
        ('{"label": "猫，１", "bbox": [1,2,3,4]}', [Region(BOX, "猫，１")]),
        ('{"point_2d": [1, 2], "label": "dog"}', [Region((1, 2), "dog")]),
        ('{"point_2d": [9, 9], "bbox_2d": [1,2,3,4]}', [Region(BOX)]),
        ('{"bbox_2d": [1,2,3,4], "color": "red"}', [Region(BOX)]),
        ("[1, 2, 3, 4]", [Region(BOX)]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [Region(BOX), Region(OTHER)]),
        ("[1, 2, 3, 4], [5, 6, 7, 8]", [Region(BOX), Region(OTHER)]),
        ("[1,2,3,4,]", [Region(BOX)]),
        (r"\boxed{[1,2,3,4]}", [Region(BOX)]),
        ("(1, 2, 3, 4)", [Region(BOX)]),
        ("(1,2),(3,4)", [Region(BOX)]),
        ("(1, 2) (3, 4)", [Region(BOX)]),
        ("[(1,2),(3,4)]", [Region(BOX)]),
        ("(1,2),(3,4),(5,6),(7,8)", [Region(BOX), Region(OTHER)]),
        ("(1,2) and (3,4)", [Region((1, 2)), Region((3, 4))]),
        ("(1,2) [5,6,7,8] (3,4)", [Region((1, 2)), Region(OTHER), Region((3, 4))]),
        ("[[1,2],[3,4]]", [Region((1, 2)), Region((3, 4))]),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", [Region(BOX)]),
        (
            "<|object_ref_start|>a (big) dog<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
            "<|box_start|>(5,6),(7,8)<|box_end|><|im_end|>",
            [Region(BOX, "a (big) dog"), Region(OTHER, "a (big) dog")],
        ),
        (
            "<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>\n"
            "<|object_ref_start|>b<|object_ref_end|><|box_start|>(5,6),(7,8)<|box_end|>",
            [Region(BOX, "a"), Region(OTHER, "b")],
        ),
        ("[-1, 2.5, +3e1, .5]", [Region((-1, 2.5, 30, 0.5))]),
        ("［１，２．５，－３，４］（５，６，７，８）", [Region((1, 2.5, -3, 4)), Region(OTHER)]),
        ("[1,2,3,4] [1,2,3,4]", [Region(BOX), Region(BOX)]),
        ("the box [x1, y1, x2, y2] is [1, 2, 3, 4]", [Region(BOX)]),
        ("[see the 5\" mark] the dog's box: [1,2,3,4]", [Region(BOX)]),
        ("a range [0, 1) and [see below: [1,2,3,4]", [Region(BOX)]),
        ('{"bbox": [1,2,3,4]}]}', [Region(BOX)]),
    ],
)
def test_forms_that_models_write(text: str, regions: list[Region]) -> None:
    assert read_regions(text).regions == regions


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no boxes",
        "[1,2,3]",
        "[1,2,3,4,5]",
        "[1 2 3 4]",
        "[1,,2,3,4]",
        "[1,2,3,4)",
        "[1px, 2, 3, 4]",
        "[a1, 2, 3, 4]",
        "[1.2.3, 2, 3, 4]",
        "[NaN, 2, 3, Infinity]",
        "[1e400, 2, 3, 4]",
        "[1e15, 2, 3, 4]",
        f"[{'1' * 41}, 2, 3, 4]",
        "[0x1, 2, 3, 4]",
        "[١, ٢, ٣, ٤]",  # other scripts' digits are not read, rather than read by accident
        '{"color": [1,2,3,4]}',
        '{"color": [1,2,3,4], "label": "dog"}',
        '{"bbox_2d": [1,2]}',
        '{"bbox_2d": [1,2,3,1e15], "label": "dog"}',
        '{"bbox_2d": "[1,2,3,4]"}',
        '"[1,2,3,4',
    ],
)
def test_what_is_no_region(text: str) -> None:
    assert read_regions(text).regions == []
    assert not read_regions(text).says_none


@pytest.mark.parametrize("text", ["[]", "```json\n[ ]\n```", '{"boxes": []}', "None", " null\n"])
def test_none_is_an_answer(text: str) -> None:
    assert read_regions(text).says_none


def test_none_beside_a_region_is_not_said() -> None:
    assert not read_regions("[] [1,2,3,4]").says_none


def test_points_do_not_become_boxes_where_points_are_asked_for() -> None:
    assert read_regions("(1,2),(3,4)", pairs="points").regions == [Region((1, 2)), Region((3, 4))]
    assert read_regions("<|box_start|>(1,2),(3,4)<|box_end|>", pairs="points").regions == [Region(BOX)]
    assert Region(BOX).centre == (2, 3) and Region((1, 2)).centre == (1, 2)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_text_that_was_cut_off_gives_its_complete_regions(data: st.DataObject) -> None:
    items = [{"bbox_2d": [n, n + 1, n + 2, n + 3], "label": f'dog [{n}] "{n}"'} for n in range(4)]
    text = json.dumps(items)
    end = data.draw(st.integers(0, len(text) - 1))
    ends = [text.index(json.dumps(item)) + len(json.dumps(item)) for item in items]
    reading = read_regions(text[:end])
    assert len(reading.regions) == sum(end >= complete for complete in ends)
    assert reading.cut == (end > 0)
    assert not read_regions(text).cut and len(read_regions(text).regions) == 4


def test_an_object_counts_once_its_brace_is_closed() -> None:
    assert read_regions('[{"bbox_2d": [1,2,3,4], "label": "do').regions == []
    assert read_regions("[[1,2,3,4], [5,6,7").regions == [Region(BOX)]
    assert read_regions("<|box_start|>(1,2),(3,4)").cut


def test_numbers_of_regions_and_depth_are_bounded() -> None:
    assert len(read_regions("[1,2,3,4]" * MAX_REGIONS).regions) == MAX_REGIONS
    with pytest.raises(InvalidOutput, match="more than 1000 boxes"):
        read_regions("[1,2,3,4]" * (MAX_REGIONS + 1))
    with pytest.raises(InvalidOutput, match="more than 2 boxes"):
        read_regions("[1,2,3,4]" * 3, max_regions=2)
    assert read_regions("[" * (MAX_DEPTH - 1) + "{[1,2,3,4]}").regions == [Region(BOX)]
    for piece in ("[", "{", '{"a":', '[{"a":['):
        with pytest.raises(InvalidOutput, match="nested"):
            read_regions(piece * 100_000)


labels = st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)
numbers = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6)


@given(
    st.lists(st.tuples(st.tuples(numbers, numbers, numbers, numbers), labels), min_size=1, max_size=5), st.booleans()
)
@settings(max_examples=100, deadline=None)
def test_any_json_is_read_back(items: list[tuple[tuple[float, float, float, float], str]], ascii_only: bool) -> None:
    expected = [Region(tuple(map(float, box)), label) for box, label in items]
    for objects in (  # the common form, and the same in an uncommon one
        [{"bbox_2d": box, "label": label} for box, label in items],
        [{"label": label, "bbox_2d": box} for box, label in items],
    ):
        assert read_regions(json.dumps(objects, ensure_ascii=ascii_only, indent=1)).regions == expected


marks = ["<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
words = ['"bbox":', "bbox_2d", '"label":', "[1,2,3,4]", "(1,2)", "1", "-2.5", "３", "e9", *marks]
pieces = st.sampled_from([*"[]{}(),:\"'\\\n ", *words])


@given(st.text() | st.lists(pieces, max_size=60).map("".join))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_without_an_exception(text: str) -> None:
    for reading in (read_regions(text, max_regions=10**6), read_regions(text, pairs="points", max_regions=10**6)):
        assert all(len(region.coordinates) in (2, 4) for region in reading.regions)
        assert all(abs(value) < 1e15 for region in reading.regions for value in region.coordinates)
        json.dumps([region.as_json() for region in reading.regions], ensure_ascii=False).encode()


ENDLESS = ["(", "[1,", "(1,2),", '["', '\\"', '"\\', "[ ", "( 1 ", "1", "]", "}", "'", '{"', "{}", " ", "<|", *marks]


@pytest.mark.parametrize("lead", ["", "[", '{"'])
@pytest.mark.parametrize("piece", [*ENDLESS, "[1,2,3,4],", "[1,2,3,4 "])
def test_time_grows_no_faster_than_the_text(piece: str, lead: str) -> None:
    text = lead + piece * (100_000 // len(piece))
    began = time.process_time()
    try:
        read_regions(text, max_regions=10**6)
    except InvalidOutput as error:
        assert "nested" in error.detail
    assert time.process_time() - began < 5  # of this process: how busy the machine is does not matter
