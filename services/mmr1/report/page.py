"""report.html: one file without any reference outside itself. Fills the template of that name; holds no markup.

Everything that comes from the run, model output above all, goes through jinja's autoescape or its `tojson`.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmr1.metric_names import is_share, words_for
from mmr1.report import fine_tuning
from mmr1.report.charts import Chart, colour, readout, svg
from mmr1.report.compare import Comparison
from mmr1.report.curves import curves
from mmr1.report.evaluation import EvaluationComparison, EvaluationFolder, told
from mmr1.report.held_out import series
from mmr1.report.result import RunResult, interval
from mmr1.report.run_files import Folder, RunFiles
from mmr1.report.samples import Sample
from mmr1.report.series import short
from mmr1.report.table import change, measured, minutes, percent
from mmr1.report.tokens import legend


def page(run: RunFiles, result: RunResult, samples: list[Sample], comparison: Comparison | None = None) -> str:
    """The whole page of a run as text; with a comparison, its curves are of both runs."""
    return _render(
        "report.html",
        run,
        comparison.charts if comparison else curves(run),
        planned=_planned(run),
        comparison=comparison,
        result=result,
        heldout=_heldout(run, result.heldout.n),
        reasons={name: run.ledger[name] for name in ("dropped", "dead") if isinstance(run.ledger.get(name), dict)},
        **_gallery(samples, steps=sorted({sample.step for sample in samples})),
    )


def fine_tuning_page(run: RunFiles, result: dict[str, Any]) -> str:
    """The whole page of what `mmr1 sft` has left as text; `result` is what result.json holds."""
    return _render("fine_tuning.html", run, fine_tuning.curves(run), planned=_planned(run), result=result)


def evaluation_page(
    evaluation: EvaluationFolder, samples: list[Sample], comparison: EvaluationComparison | None = None
) -> str:
    """The whole page of what `mmr1 eval` has left as text."""
    return _render(
        "evaluation.html",
        evaluation,
        [],
        results=evaluation.results,
        told=told(evaluation),
        comparison=comparison,
        **_gallery(samples, steps=[]),
    )


def _gallery(samples: list[Sample], steps: list[int]) -> dict[str, Any]:
    """What samples.html takes. Without steps there is no filter by them, and a group is a problem."""
    rows = [row for sample in samples for row in sample.rows]
    return {
        "samples": samples,
        "num_rows": len(rows),
        "steps": steps,
        "outcomes": Counter(row.outcome for row in rows),
        "tasks": Counter(sample.task for sample in samples for _ in sample.rows),
        "shades": legend(),
        "has_gaps": any(row.gaps for row in rows),
        "has_boxes": any(sample.size and (sample.truth or sample.first_with_boxes is not None) for sample in samples),
    }


def _planned(run: RunFiles) -> int | None:
    return max((m["num_steps"] for m in run.metrics if isinstance(m.get("num_steps"), int)), default=None)


def _render(template: str, folder: Folder, charts: list[Chart], **more: Any) -> str:
    environment = Environment(
        loader=PackageLoader("mmr1.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        minutes=minutes,
        short=short,
        three="{:.3f}".format,
        signed="{:+.3f}".format,
        words_for=words_for,
        pixel=_pixel,
    )
    script = _own("report.js")
    return environment.get_template(template).render(
        css=Markup(_own("report.css")),
        js=Markup(script),
        js_sha256=_fingerprint(script),
        name=str(folder.config.get("run") or folder.folder.name),
        model=str(folder.config.get("model") or ""),
        problems=folder.problems,
        charts=[_drawn(chart) for chart in charts],
        readouts=[readout(chart) for chart in charts],
        config=folder.config,
        **more,
    )


def _own(name: str) -> str:
    """A file of this package, word for word. Only our own style and script are ever marked as safe."""
    return files("mmr1.report").joinpath(name).read_text(encoding="utf-8")


def _fingerprint(script: str) -> str:
    """For the page's content security policy: no other script runs, should one ever get past the escaping."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _drawn(chart: Chart) -> dict[str, Any]:
    names = [(line.name, colour(chart, place), line.partner is not None) for place, line in enumerate(chart.lines)]
    return {"title": chart.title, "note": chart.note, "legend": names, "svg": Markup(svg(chart))}


def _pixel(value: float) -> str:
    """A coordinate as SVG takes it."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _heldout(run: RunFiles, num_problems: int | None) -> list[dict[str, Any]]:
    """An entry for each task's headline metric: by mode what was measured before and after, intervals, and the gain.

    Only of shares are there bars: a mean reward has no scale.
    """
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for (task, mode, metric), one in series(run.evaluations).items():
        bars = is_share(metric)
        if not one.headline or (bars and not all(0 <= measure.value <= 1 for measure in one.by_step.values())):
            continue
        of_problems = metric == "accuracy"  # whose interval follows from their number; what else there is are means
        sides = []
        for name, measure in (("before", one.before), ("after", one.after)):
            if measure is None:
                continue
            low, high = measure.low, measure.high
            if low is None or high is None:
                low, high = interval(measure.value, num_problems) if of_problems and num_problems else (None, None)
            words = measured(metric, measure.value)
            sides.append({"name": name, "value": measure.value, "low": low, "high": high, "words": words})
        gain = None
        if one.before and one.after:
            gain = change(metric, one.after.value - one.before.value)
        if sides:
            named = {"task": task, "metric": words_for(metric), "bars": bars, "modes": []}
            entry = entries.setdefault((task, metric), named)
            entry["modes"].append({"mode": mode, "sides": sides, "gain": gain})
    return list(entries.values())
