"""Progress of a training run in a notebook: one output, drawn again in place."""

import base64
import html
import time
from collections.abc import Sequence
from typing import Any

from sfumato.training.loop import Run
from sfumato.training.progress import TrainingProgress, state_line, whole_steps
from sfumato.training.records import Tail, sample_grids

EVERY_SECONDS = 1.0
MOST_POINTS = 500
WIDTH_PX, HEIGHT_PX = 480, 120


class NotebookProgress(TrainingProgress):
    """A bar, the curve of the loss over the whole run, and the newest samples.

    IPython's own display updates it, so that no extension of the notebook is needed.
    """

    def __init__(self) -> None:
        super().__init__(show=False)
        self._output: Any = None
        self._log: Tail | None = None
        self._losses: list[tuple[int, float]] = []
        self._drawn = 0.0

    def show(self, run: Run, *, speed: float, loss: float) -> None:
        now = time.monotonic()
        if now - self._drawn < EVERY_SECONDS and not run.finished:
            return
        self._drawn = now
        self._draw(self._page(run, state_line(run, speed=speed, loss=loss)))

    def at_end(self, run: Run) -> None:
        """Once more: the last samples were made after the last step was shown."""
        if self._output is not None:
            self._draw(self._page(run, f"{run.images_seen:,} of {whole_steps(run):,} images"))

    def _draw(self, page: str) -> None:
        from IPython.display import HTML, display  # pyright: ignore

        if self._output is None:
            self._output = display(HTML(page), display_id=True)
        else:
            self._output.update(HTML(page))

    def _page(self, run: Run, line: str) -> str:
        self._read(run)
        bar = f'<progress max="{whole_steps(run)}" value="{run.images_seen}"></progress>'
        parts = [f"{bar} <code>{html.escape(line.strip())}</code>"]
        if len(self._losses) > 1:
            parts.append(loss_svg(self._losses))
        if grids := sample_grids(run.folder):
            data = base64.b64encode(grids[-1][1].read_bytes()).decode()
            parts.append(f'<img src="data:image/png;base64,{data}" style="max-width: 100%">')
        return "".join(f"<div>{part}</div>" for part in parts)

    def _read(self, run: Run) -> None:
        """What is new in the log, which a resumed run has from its start."""
        self._log = self._log or Tail(run.folder / "metrics.jsonl")
        while records := self._log.read():
            self._losses += [(one["images"], one["loss"]) for one in records]
        if len(self._losses) > MOST_POINTS:
            self._losses = self._losses[:-1:2] + self._losses[-1:]


def loss_svg(points: Sequence[tuple[int, float]]) -> str:
    """The curve of the loss over the images seen, as SVG."""
    first, last = points[0][0], points[-1][0]
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    places = " ".join(
        f"{WIDTH_PX * (images - first) / max(1, last - first):.1f},"
        f"{HEIGHT_PX * (high - loss) / ((high - low) or 1):.1f}"
        for images, loss in points
    )
    text = 'font-size="11" fill="#777777" font-family="sans-serif"'
    return (
        f'<svg width="{WIDTH_PX + 60}" height="{HEIGHT_PX + 26}" '
        f'viewBox="-4 -6 {WIDTH_PX + 60} {HEIGHT_PX + 26}">'
        f'<polyline points="{places}" fill="none" stroke="#1f618d" stroke-width="1.5"/>'
        f'<text x="{WIDTH_PX + 6}" y="8" {text}>{high:.4g}</text>'
        f'<text x="{WIDTH_PX + 6}" y="{HEIGHT_PX}" {text}>{low:.4g}</text>'
        f'<text x="0" y="{HEIGHT_PX + 15}" {text}>loss</text>'
        f'<text x="{WIDTH_PX}" y="{HEIGHT_PX + 15}" text-anchor="end" {text}>'
        f"{last:,} images</text></svg>"
    )
