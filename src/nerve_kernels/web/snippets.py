"""Pieces of the page as HTML; every text from outside is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from .limits import MAX_FILE_BYTES
from .opened_image import HeadWeight

MAX_BARS = 48

DROP_ZONE = """
<label class="nerve-drop" tabindex="0">
  <input type="file" accept="image/*" aria-label="image file">
  <b>Drop an image here</b>, or click to choose one
  <small>PNG, JPEG, WEBP, GIF, BMP or TIFF, up to %d MB. It stays in this program's memory.</small>
</label>
"""
DROP_ZONE %= MAX_FILE_BYTES // 2**20

# Files never go through a server-side upload: the image travels inside the event.
DROP_ZONE_SCRIPT = """
const send = (file) => {
  if (!file) return;
  if (file.size > MAX_FILE_BYTES) { trigger('upload', {too_large: file.size}); return; }
  const reader = new FileReader();
  reader.onload = () => trigger('upload', {image: reader.result});
  reader.onerror = () => trigger('upload', {});
  reader.readAsDataURL(file);
};
const over = (event, on) => {
  event.preventDefault();
  const zone = element.querySelector('.nerve-drop');
  if (zone) zone.classList.toggle('over', on);
};
element.addEventListener('change', (event) => {
  if (event.target.type !== 'file') return;
  send(event.target.files[0]);
  event.target.value = '';
});
element.addEventListener('dragover', (event) => over(event, true));
element.addEventListener('dragleave', (event) => over(event, false));
element.addEventListener('drop', (event) => { over(event, false); send(event.dataTransfer.files[0]); });
""".replace("MAX_FILE_BYTES", str(MAX_FILE_BYTES))

# A file made in the browser from what the server answered: nothing is written on the server.
DOWNLOAD_SCRIPT = """
(file) => {
  if (!file) return;
  const link = document.createElement('a');
  link.href = file.url;
  link.download = file.name;
  document.body.appendChild(link);
  link.click();
  link.remove();
}
"""

STYLE = """
.nerve-drop { display: block; border: 2px dashed var(--border-color-primary); border-radius: 12px; padding: 20px 12px;
  text-align: center; cursor: pointer; background: var(--background-fill-secondary); }
.nerve-drop.over, .nerve-drop:hover, .nerve-drop:focus-within { border-color: var(--color-accent); }
.nerve-drop input { position: absolute; opacity: 0; width: 1px; height: 1px; }
.nerve-drop small { display: block; margin-top: 4px; opacity: .7; }
.nerve-status { border-radius: 8px; padding: 10px 14px; border-left: 4px solid var(--color-accent);
  background: var(--background-fill-secondary); }
.nerve-status.busy { border-color: #d97706; }
.nerve-status.error { border-color: #dc2626; color: #b91c1c; }
.dark .nerve-status.error { color: #fca5a5; }
.nerve-status small { opacity: .75; }
.nerve-bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 4px 10px; align-items: center;
  font-size: 13px; }
.nerve-bars .track { background: var(--background-fill-secondary); border-radius: 4px; height: 14px; }
.nerve-bars .bar { background: var(--color-accent); border-radius: 4px; height: 14px; min-width: 2px; }
.nerve-bars .layer { grid-column: 1 / -1; font-weight: 600; margin-top: 6px; overflow-wrap: anywhere; }
#scenes { min-height: 0; }
#scenes .grid-wrap { max-height: none; min-height: 0; height: auto; }
.nerve-title, .nerve-note { margin: 0 !important; }
.nerve-note { font-size: 13px; opacity: .8; }
.nerve-note * { font-size: inherit !important; }
.min_value, .max_value { display: none; }
#after img { cursor: crosshair; }
footer { display: none !important; }
"""


def status(kind: str, words: str, details: str = "") -> str:
    """A banner; `kind` is ``ready``, ``busy`` or ``error``.

    Example:
        >>> status("error", "<b>")
        '<div class="nerve-status error" role="status">&lt;b&gt;</div>'
    """
    small = f"<br><small>{html.escape(details)}</small>" if details else ""
    return f'<div class="nerve-status {html.escape(kind)}" role="status">{html.escape(words)}{small}</div>'


def phase_times(seconds: Mapping[str, float], shown: float) -> tuple[str, str]:
    """What a run took, in words: a headline, and the phases that ran.

    Args:
        seconds: by phase.
        shown: seconds from the request to the answer.

    Example:
        >>> phase_times({"random walk": 0.004, "drawing": 0.02}, 0.03)
        ('Done in 30 ms.', 'Ran: random walk 4 ms, drawing 20 ms. Everything else was kept from before.')
        >>> phase_times({}, 0.001)
        ('Done in 1 ms.', 'Nothing had to run: all of it was kept from before.')
    """
    headline = f"Done in {_duration(shown)}."
    if not seconds:
        return headline, "Nothing had to run: all of it was kept from before."
    phases = ", ".join(f"{phase} {_duration(taken)}" for phase, taken in seconds.items())
    return headline, f"Ran: {phases}. Everything else was kept from before."


def head_bars(heads: Sequence[HeadWeight]) -> str:
    """A bar for each attention head, layer by layer; of very many, the heaviest.

    Example:
        >>> heads = [HeadWeight("mid.attn1", 20, 0, 0.62, 0.5), HeadWeight("mid.attn1", 20, 1, 0.38, 0.9)]
        >>> "62.0 %" in head_bars(heads)
        True
    """
    kept = sorted(heads, key=lambda head: -head.weight)[:MAX_BARS]
    rows = []
    layer = None
    for head in heads:
        if head not in kept:
            continue
        if (head.layer, head.timestep) != layer:
            layer = (head.layer, head.timestep)
            rows.append(f'<div class="layer">{html.escape(head.layer)}, timestep {head.timestep}</div>')
        rows.append(
            f"<div>head {head.head + 1}</div>"
            f'<div class="track"><div class="bar" style="width:{100 * head.weight / kept[0].weight:.1f}%"></div></div>'
            f"<div>{100 * head.weight:.1f} % · entropy {head.entropy:.2f}</div>"
        )
    more = f"<p>The {MAX_BARS} heaviest of {len(heads)} heads.</p>" if len(heads) > len(kept) else ""
    return f'<div class="nerve-bars">{"".join(rows)}</div>{more}'


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
