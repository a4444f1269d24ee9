"""docs/report.md names the bounds that the report has."""

from __future__ import annotations

import re
from pathlib import Path

from mmr1.drawn_boxes import MAX_BOXES
from mmr1.report import samples, series, tokens

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "report.md").read_text()


def test_each_bound_is_the_programs() -> None:
    table = PAGE.partition("| of | at most | of more |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = {cells[1].strip(): " ".join(cells[2:]) for cells in (line.split("|") for line in table.splitlines())}
    named = {name: [float(n.replace(",", "")) for n in re.findall(r"\d[\d,.]*", told)] for name, told in rows.items()}
    assert named == {
        "a curve": [series.MAX_POINTS],
        "completions": [samples.MAX_ROWS, samples.EXTRA_PER_OUTCOME],
        "steps with groups": [samples.MAX_STEPS],
        "a completion, prompt, problem, solution or detail": [samples.MAX_CHARACTERS],
        "tokens of a completion": [tokens.MAX_COLOURED],
        "boxes of a completion, and of a solution": [MAX_BOXES],
        "an image": [samples.MAX_IMAGE_SIDE, samples.MAX_PNG_BYTES / 1000],
        "images": [samples.MAX_IMAGE_BYTES / 1e6],
    }
