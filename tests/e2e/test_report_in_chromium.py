"""The report as a reader has it: opened from a file in a real browser, filtered, compared, by mouse and by keyboard.

What is checked is what the browser made of the page: geometry, what is visible, what it asked the network for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmr1.report import build, build_evaluation
from tests.chromium import Page, find_chromium
from tests.unit.report.evaluated import write_evaluation
from tests.unit.report.mixed import HEIGHT, SPACES, WIDTH, write_mixed_run
from tests.unit.report.synthetic import write_lines, write_run

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium here: apt-get install chromium")

VISIBLE = "[...document.querySelectorAll('.row')].filter((row) => row.offsetParent).length"
SHOWN = "document.getElementById('shown').textContent"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    this = write_mixed_run(folder, name="lower", num_steps=12)
    other = write_mixed_run(folder, name="higher", num_steps=9, seed=1, learning_rate=3e-4)
    build(this, other)
    build(other)
    return this, other


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with Page() as page:
        yield page
        assert page.requests == [], "the file asks nobody"
        assert page.complaints == []


@pytest.fixture
def page(browser: Page, runs: tuple[Path, Path]) -> Page:
    browser.look(1360, 900)
    browser.open(runs[0] / "report.html")
    return browser


def choose(page: Page, **values: str) -> str:
    """Set filters as a reader does, and say what the page then says it shows."""
    for name, value in values.items():
        page.run(
            f"(() => {{ const field = document.getElementById('filters').elements[{json.dumps(name)}];"
            f"field.value = {json.dumps(value)}; field.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        )
    told: str = page.run(SHOWN)
    return told


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]


def test_a_page_of_nothing_but_a_file_makes_no_request_and_no_complaint(page: Page) -> None:
    assert page.run("document.title") == "lower: MMR1 report"
    assert page.run("document.images.length > 10 && [...document.images].every((i) => i.src.startsWith('data:'))")
    page.run("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
    assert page.run("Promise.all([...document.images].map((image) => image.decode())).then(() => true)")
    assert page.requests == [] and page.complaints == []
    # Should a model's words ever get past the escaping, nothing that they ask for is fetched or run.
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=https://example.org/x.png onerror=alert(1)>')")
    page.run("new Promise((done) => setTimeout(done, 300))")
    assert page.requests == [] and page.blocked == ["https://example.org/x.png"]
    assert any("Content Security Policy" in said for said in page.complaints)
    page.complaints.clear()


def test_filters_combine_and_the_number_shown_is_the_number_there(page: Page) -> None:
    total = page.run("document.querySelectorAll('.row').length")
    assert choose(page).startswith(f"{total} of {total} completions") and page.run(VISIBLE) == total
    by_task = choose(page, task="detection")
    shown = page.run(VISIBLE)
    assert by_task.startswith(f"{shown} of {total} completions") and 0 < shown < total
    narrower = choose(page, low="0.9")
    both = page.run(VISIBLE)
    assert narrower.startswith(f"{both} of") and 0 < both < shown
    wanted = "[...document.querySelectorAll('.row')].filter((row) => row.offsetParent).every((row) =>"
    assert page.run(
        f"{wanted} row.closest('.group').dataset.task === 'detection' && Number(row.dataset.reward) >= 0.9)"
    )
    step = page.run(
        "[...document.querySelectorAll('.row')].find((row) => row.offsetParent).closest('.group').dataset.step"
    )
    choose(page, step=step)
    assert page.run(f"{wanted} row.closest('.group').dataset.step === {json.dumps(step)})") and page.run(VISIBLE) >= 1
    page.run("document.querySelector('#filters button[type=reset]').click()")
    page.run("new Promise((done) => setTimeout(done, 50))")
    assert page.run(VISIBLE) == total
    timeouts = choose(page, outcome="timeout")
    assert page.run(VISIBLE) == 1 and timeouts.startswith("1 of"), "four equal ones are shown once"
    assert choose(page, low="0").startswith("0 of") and page.run("!document.getElementById('none').hidden")


@pytest.mark.parametrize("task", ["detection", "grounding"])
def test_boxes_lie_on_the_image_where_the_record_says(page: Page, runs: tuple[Path, Path], task: str) -> None:
    """On the screen: true boxes in pixels of the original, read ones from the space that the run declared."""
    group = f".group[data-task={task}]"
    page.run(f"document.querySelector('{group}').scrollIntoView()")
    found = page.run(
        f"(() => {{ const group = document.querySelector('{group}'); const image = group.querySelector('img');"
        "const at = image.getBoundingClientRect(); const boxes = (kind) => [...group.querySelectorAll(kind)]"
        ".filter((box) => box.getBoundingClientRect().width).map((box) => { const b = box.getBoundingClientRect();"
        "return [b.left - at.left, b.top - at.top, b.right - at.left, b.bottom - at.top]; });"
        "return {width: at.width, height: at.height, true: boxes('rect.true'), found: boxes('rect.found'),"
        "prompt: group.querySelectorAll('.tag')[1].textContent.slice(7), reward: group.querySelector('.row')"
        ".dataset.reward}; })()"
    )
    assert found["height"] == pytest.approx(found["width"] * HEIGHT / WIDTH, abs=1)
    scale = found["width"] / WIDTH
    record = next(
        one for one in records(runs[0]) if one["prompt_id"] == found["prompt"] and str(one["reward"]) == found["reward"]
    )
    truth = [one["bbox_2d"] for one in record["solution"]] if task == "detection" else [record["solution"]]
    read = record["parsed"][task] if task == "detection" else [record["parsed"][task]]
    extent = SPACES[task].get("resized_size", [1000, 1000])
    factors = (WIDTH / extent[0], HEIGHT / extent[1])
    pixels = [[edge * factors[axis % 2] for axis, edge in enumerate(one["bbox_2d"])] for one in read]
    for drawn, wanted in ((found["true"], truth), (found["found"], pixels)):
        assert len(drawn) == len(wanted)
        for box, edges in zip(drawn, wanted, strict=True):
            assert box == pytest.approx([edge * scale for edge in edges], abs=1.5)


def test_another_completions_boxes_are_chosen_with_the_keyboard(page: Page) -> None:
    group = "document.querySelector('.group[data-task=detection]')"
    visible = f"[...{group}.querySelectorAll('[data-of]:not([hidden])')].map((boxes) => boxes.dataset.of)"
    assert page.run(visible) == ["0"]
    page.run(f"{group}.querySelectorAll('.choose')[1].focus()")
    page.press("Enter")
    assert page.run(visible) == ["1"]
    assert page.run(f"[...{group}.querySelectorAll('.choose')].map((button) => button.ariaPressed)")[:2] == [
        "false",
        "true",
    ]
    page.run(f"{group}.querySelector('.enlarge').focus()")
    page.press("Enter")
    assert page.run("document.getElementById('large').open && document.querySelector('#large rect.found') !== null")
    assert page.run("document.querySelector('#large img').getBoundingClientRect().width > 500")
    page.press("Escape")
    assert not page.run("document.getElementById('large').open")


def test_a_curves_values_are_read_with_the_arrow_keys(page: Page, runs: tuple[Path, Path]) -> None:
    chart = "document.querySelector('.chart')"
    page.run(f"{chart}.querySelector('svg').focus()")
    page.press("Home")
    first = json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[0])["reward_mean"]
    assert page.run(f"{chart}.querySelector('.at').textContent") == "step 1"
    assert page.run(f"{chart}.querySelector('.key b').textContent") == f"{first:.4g}"
    page.press("ArrowRight")
    assert page.run(f"{chart}.querySelector('.at').textContent") == "step 2"


def test_tokens_have_the_shade_of_their_gap(page: Page) -> None:
    """And every shade has a colour of its own that text can be read on, in light and in dark."""
    first = page.run(
        "[...document.querySelectorAll('.row .gap')].slice(0, 1).map((t) => [t.textContent, t.dataset.level, t.title])"
    )
    assert first == [["<answer>", "4", "+1.25 nats"]]
    contrast = (
        "(() => { const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).map(Number).map((v) => v / 255)"
        ".map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);"
        "return .2126 * r + .7152 * g + .0722 * b; };"
        "return [...document.querySelectorAll('.shades .gap')].map((s) => { const style = getComputedStyle(s);"
        "const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x);"
        "return [style.backgroundColor, (a + 0.05) / (b + 0.05)]; }); })()"
    )
    for dark in (False, True):
        page.look(1360, 900, dark=dark)
        shades = page.run(contrast)
        assert len({colour for colour, _ in shades}) == 9
        assert min(ratio for _, ratio in shades) >= 4.5


def test_both_runs_are_in_the_comparison(page: Page) -> None:
    assert page.run("document.querySelectorAll('.chart .line.other').length > 10")
    rows = "[...document.querySelectorAll('#comparison tbody tr')].map((row) => row.innerText.split(/\\s+/).join(' '))"
    told = page.run(rows)
    assert "learning_rate 0.0001 0.0003" in told and not any("objective" in row for row in told)
    assert sum("mean IoU grounding" in row for row in told) == 2


@pytest.mark.parametrize("width", [360, 700, 1360])
def test_nothing_sticks_out_of_a_narrow_window(page: Page, width: int) -> None:
    page.look(width, 900)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_every_control_and_image_has_a_name_and_every_id_is_one(page: Page) -> None:
    unnamed = (
        "[...document.querySelectorAll('button, select, input, img, svg[role=img], dialog, form')].filter((e) =>"
        "!(e.textContent.trim() || e.ariaLabel || e.alt || e.closest('label') || e.getAttribute('aria-labelledby')))"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert page.run(unnamed) == []
    assert page.run("(() => { const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);"
                    "return ids.length === new Set(ids).size; })()")  # fmt: skip


def test_the_page_of_an_evaluation_is_filtered_too(browser: Page, tmp_path: Path) -> None:
    """It has no steps to choose, and no curve to read."""
    folder = write_evaluation(tmp_path / "eval", tmp_path / "data")
    build_evaluation(folder)
    browser.look(1360, 900)
    browser.open(folder / "report.html")
    assert browser.run("document.title") == "mine: MMR1 evaluation"
    assert choose(browser) == "40 of 40 completions, in 40 groups"
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    right = [line for line in lines if line["task"] == "grounding" and line["reward"] >= 0.5]
    choose(browser, task="grounding", low="0.5")
    assert browser.run(VISIBLE) == len(right) > 0
    choose(browser, task="", low="", outcome="invalid_output")
    assert browser.run(VISIBLE) == sum(not line["is_valid"] for line in lines) > 0


def test_what_a_model_says_stays_text(browser: Page, tmp_path: Path) -> None:
    """In tokens, labels, components and all the rest; the page of such a run works as any other."""
    run = write_mixed_run(tmp_path, num_steps=2)
    attack = "</pre></svg></script><script>window.hit=1</script><img src=x onerror='window.hit=2'>\"'{{ 7*7 }}"
    lines = records(run)
    for line in lines:
        line |= {name: attack for name in ("problem", "prompt", "completion", "detail", "prompt_id", "policy_version")}
        line |= {"tokens": [attack, "b"], "gaps": [2.0, 0.0], "components": {attack: 1.0}, "outcome": attack}
        line |= {"task": attack, "solution": [{"bbox_2d": [10, 10, 60, 60], "label": attack}], "finish_reason": attack}
        line |= {"parsed": {attack: [{"bbox_2d": [20, 20, 70, 70], "label": attack}]}, "coordinates": {attack: attack}}
    write_lines(run / "completions.jsonl", lines)
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    other = write_run(tmp_path / "other", num_steps=2)
    hostile = {"mode": attack, "task": attack, "headline": attack, "metrics": {attack: {"value": 0.5}}}
    write_lines(run / "evaluations.jsonl", [line | hostile for line in evaluations])
    (other / "config.yaml").write_text(json.dumps({"run": attack, "kl": attack, attack: attack}))
    build(run, other)
    browser.open(run / "report.html")
    assert browser.run("document.scripts.length") == 2 and browser.run("window.hit === undefined")
    assert browser.run("document.querySelector('.row .gap').textContent") == attack
    assert browser.run("document.querySelector('.boxes text.found').textContent.length") == 80
    assert browser.run(VISIBLE) > 0 and browser.requests == [] and browser.complaints == []
