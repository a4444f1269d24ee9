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

from mmr1.report import fine_tuning
from mmr1.report.charts import Chart, colour, readout, svg
from mmr1.report.curves import curves
from mmr1.report.result import MODES, RunResult, interval
from mmr1.report.run_files import RunFiles
from mmr1.report.samples import Sample
from mmr1.report.series import short
from mmr1.report.table import minutes, percent


def page(run: RunFiles, result: RunResult, samples: list[Sample]) -> str:
    """The whole page of a run as text."""
    return _render(
        "report.html",
        run,
        curves(run),
        result=result,
        heldout=_heldout(result),
        reasons={name: run.ledger[name] for name in ("dropped", "dead") if isinstance(run.ledger.get(name), dict)},
        samples=samples,
        num_rows=sum(len(sample.rows) for sample in samples),
        steps=sorted({sample.step for sample in samples}),
        outcomes=Counter(row.outcome for sample in samples for row in sample.rows),
    )


def fine_tuning_page(run: RunFiles, result: dict[str, Any]) -> str:
    """The whole page of what `mmr1 sft` has left as text; `result` is what result.json holds."""
    return _render("fine_tuning.html", run, fine_tuning.curves(run), result=result)


def _render(template: str, run: RunFiles, charts: list[Chart], **more: Any) -> str:
    environment = Environment(
        loader=PackageLoader("mmr1.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, minutes=minutes, short=short)
    script = _own("report.js")
    return environment.get_template(template).render(
        css=Markup(_own("report.css")),
        js=Markup(script),
        js_sha256=_fingerprint(script),
        name=str(run.config.get("run") or run.folder.name),
        model=str(run.config.get("model") or ""),
        planned=max((m["num_steps"] for m in run.metrics if isinstance(m.get("num_steps"), int)), default=None),
        problems=run.problems,
        charts=[_drawn(chart) for chart in charts],
        readouts=[readout(chart) for chart in charts],
        config=run.config,
        **more,
    )


def _own(name: str) -> str:
    """A file of this package, word for word. Only our own style and script are ever marked as safe."""
    return files("mmr1.report").joinpath(name).read_text(encoding="utf-8")


def _fingerprint(script: str) -> str:
    """For the page's content security policy: no other script runs, should one ever get past the escaping."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _drawn(chart: Chart) -> dict[str, Any]:
    legend = [(line.name, colour(chart, place)) for place, line in enumerate(chart.lines)]
    return {"title": chart.title, "note": chart.note, "legend": legend, "svg": Markup(svg(chart))}


def _heldout(result: RunResult) -> list[dict[str, Any]]:
    """One entry per mode that was measured: both accuracies, their 95 % intervals, and the change in points."""
    entries = []
    for mode in MODES:
        sides = []
        for name, side in (("before", result.heldout.before), ("after", result.heldout.after)):
            value = side[mode]
            if value is not None:
                low, high = interval(value, result.heldout.n) if result.heldout.n else (value, value)
                sides.append({"name": name, "value": value, "low": low, "high": high})
        if sides:
            entries.append({"mode": mode, "sides": sides, "gain": result.heldout.gain(mode)})
    return entries
