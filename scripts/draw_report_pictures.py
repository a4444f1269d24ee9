"""Makes the pictures of docs/report.md: a report of runs that never were, as Chromium shows it, and a score explained.

It knows which parts of the page are worth showing, and nothing of how the page or the runs are made.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))

from mmr1.report import build  # noqa: E402
from tests.chromium import Page, find_chromium  # noqa: E402
from tests.unit.report.mixed import write_mixed_run  # noqa: E402

SOLUTION = '[{"bbox_2d": [87, 25, 106, 48], "label": "8"}, {"bbox_2d": [13, 98, 40, 132], "label": "0"}]'
RESPONSE = (
    '<answer>[{"bbox_2d": [375, 130, 470, 300], "label": "8"}, {"bbox_2d": [30, 600, 190, 800], "label": "0"}, '
    '{"bbox_2d": [400, 600, 490, 740], "label": "3"}]</answer>'
)


def main() -> int:
    """Write the three pictures. Returns the process's exit code."""
    if find_chromium() is None:
        print("no Chromium here; apt-get install chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        this = write_mixed_run(folder, name="lower")
        other = write_mixed_run(folder, name="higher", seed=1, learning_rate=3e-4)
        build(this, other)
        _draw_page(this / "report.html", folder)
        _draw_score(folder)
    return 0


def _draw_page(path: Path, folder: Path) -> None:
    with Page(width=1200, height=1400) as page:
        page.open(path)
        page.picture(folder / "page.png", of="#comparison")
        _save(folder / "page.png", "report_comparison.png")
        # The header sticks to the window and would lie over what is shown.
        page.run("document.querySelector('header').style.position = 'static'")
        group = ".group[data-task=detection]"
        page.run(f"document.querySelector('{group}').id = 'shown-group'")
        page.run("[...document.querySelectorAll('#shown-group .row')].slice(2).forEach((row) => row.remove())")
        page.run("[...document.querySelectorAll('.group')].forEach((g) => { if (g.id !== 'shown-group') g.remove(); })")
        page.run("document.querySelector('.groups').style.gridTemplateColumns = '1fr'")
        page.run(
            "Promise.all([...document.images].map((i) => { i.loading = 'eager'; return i.decode(); })).then(() => 1)"
        )
        page.picture(folder / "page.png", of="#samples")
        _save(folder / "page.png", "report_samples.png")


def _draw_score(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mmr1.cli",
        "rewards",
        "try",
        "--task",
        "detection",
        "--out",
        str(folder / "s.png"),
    ]
    command += ["--image", str(folder / "data" / "scene0.png"), "--solution", SOLUTION, "--response", RESPONSE]
    command += ["--params", '{"response_space": "normalized_1000", "score": "f1"}']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    _save(folder / "s.png", "score.png", width=640)


def _save(picture: Path, name: str, width: int | None = None) -> None:
    """As a PNG that is as small as it gets without losing a colour: those of the page are faint."""
    with Image.open(picture) as image:
        shown = image.convert("RGB")
    if width is not None:
        shown = shown.resize((width, round(shown.height * width / shown.width)), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    shown.save(content, format="PNG", optimize=True)
    (IMAGES / name).write_bytes(content.getvalue())
    print(f"docs/images/{name}  {len(content.getvalue()):,} bytes")


if __name__ == "__main__":
    sys.exit(main())
