"""The tables of README and docs that hold facts kept elsewhere: figures, backends, variables.

Each stands between ``<!-- table: name -->`` and ``<!-- end of table -->``. ``python docs/make_tables.py`` writes them
anew from ``benchmarks/results/`` and from the package; a test compares.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w ]+) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)

METHODS = {
    "clip": "CLIP alone",
    "clip, seeds of the walk": "CLIP alone, with the seeds that suit the walk",
    "clip+walk uniform": "CLIP + walk, heads weighted alike",
    "clip+walk entropy": "CLIP + walk, heads by entropy (the method)",
    "clip+walk information": "CLIP + walk, heads by information",
    "local only": "local affinity only (β = 0)",
    "global only": "global affinity only (β = 1)",
}

VOCABULARIES = {"own words": "own words", "all words": "all 50 words"}

ATTENTION, AS_MAPS = "SD 1.5 at 512², 64², 8 heads, d = 40", "SD 1.5 at 512², 32², 8 heads, d = 80"
WALK, LARGER = "64², C = 21, 16² cells, L = 20", "128², C = 150, 32² cells, L = 20"
COMPOSITE, DENSE = "composite: CSR, pooled U", "dense S in torch"

SPEED = (  # (operation, size, peer) as benchmarks/results/cpu.csv names them
    ("attention_entropy", ATTENTION, "naive: softmax, entropy"),
    ("attention_entropy", ATTENTION, "scaled_dot_product_attention (no entropy)"),
    ("entropy to both affinities", ATTENTION, "naive: maps, sum, gather, cell sums"),
    ("fuse_attention_maps", AS_MAPS, "einsum"),
    ("random_walk", WALK, DENSE),
    ("random_walk", WALK, COMPOSITE),
    ("random_walk", "64², C = 171, 16² cells, L = 20", DENSE),
    ("random_walk", "64², C = 171, 16² cells, L = 20", COMPOSITE),
    ("random_walk", LARGER, COMPOSITE),
    ("random_walk", "256², C = 19, 32² cells, L = 20", COMPOSITE),
    ("random_walk, bfloat16 S", LARGER, "ours, S as it comes"),
    ("random_walk, local only", WALK, "PyG APPNP"),
    ("random_walk_limit", WALK, "torch.linalg.solve"),
    ("random_walk, forward and backward", WALK, "autograd through the composite"),
    ("refine seeds (q, k, G to P)", ATTENTION, "CLIPer-style chain, re-associated"),
)


EMULATED = "**compiled and emulated, not yet timed on hardware**; never run on a GPU"
STATES = {  # device, what, state
    "cuda": (
        "CUDA ≥ sm_80",
        "the whole walk as one persistent cooperative launch, where one range of an image's labels fits on chip",
        EMULATED,
    ),
    "triton": ("CUDA, ROCm", "every operator: fused kernels, one launch a step of the walk, its gradient", EMULATED),
    "cpp": (
        "CPU",
        "every operator in C++: AVX-512, AVX2 or portable, chosen at run time; all steps of a walk in one call",
        "tested, measured",
    ),
    "eager": (
        "any",
        "plain PyTorch, structured and streaming, never an N × N matrix; every operator",
        "tested on the CPU; never run on a GPU",
    ),
}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown, with its last newline."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "".join(line.replace("|  |", "| |") + "\n" for line in lines)


def read_results(name: str) -> list[dict[str, str]]:
    """The rows of one file of ``benchmarks/results/``."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def quality() -> str:
    """mIoU of the embedded models on the test scenes, in percent; the best of each vocabulary is bold."""
    results = read_results("embedded_quality_by_style.csv")
    miou = {(row["method"], row["vocabulary"], row["style"]): Decimal(row["miou"]) for row in results}
    columns = [(vocabulary, style) for vocabulary in VOCABULARIES for style in ("both", "seen", "unseen")]
    best = {vocabulary: max(miou[method, vocabulary, "both"] for method in METHODS) for vocabulary in VOCABULARIES}

    def cell(method: str, vocabulary: str, style: str) -> str:
        text = str((100 * miou[method, vocabulary, style]).quantize(Decimal("0.1"), ROUND_HALF_UP))
        return f"**{text}**" if style == "both" and miou[method, vocabulary, style] == best[vocabulary] else text

    header = ["", *(VOCABULARIES[vocabulary] if style == "both" else f"{style} style" for vocabulary, style in columns)]
    return markdown(
        header, [[shown, *(cell(method, *column) for column in columns)] for method, shown in METHODS.items()]
    )


def milliseconds(value: float) -> str:
    """A time as people read it: two digits at least."""
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def speed() -> str:
    """Medians of our C++ kernels and of their peers, with the ratio; a star where the peer answers another question."""
    results = [row for row in read_results("cpu.csv") if not row["sweep"]]
    found = {(row["operation"], row["size"], row["implementation"]): row for row in results}
    rows = []
    for operation, size, peer in SPEED:
        theirs = found[operation, size, peer]
        ours_ms, theirs_ms = float(found[operation, size, "cpp"]["median_ms"]), float(theirs["median_ms"])
        ratio = f"{theirs_ms / ours_ms:.1f} ×" + ("" if theirs["same_result"] == "True" else " *")
        rows.append([operation, size, peer, milliseconds(ours_ms), milliseconds(theirs_ms), ratio])
    return markdown(["operation", "size", "against", "ours", "theirs", "ratio"], rows)


def backends() -> str:
    """Every backend of ``nerve_kernels._operators.dispatch``, best first, and how far it has been proved."""
    from nerve_kernels._operators.dispatch import BACKENDS

    rows = [[f"`{backend.name}`", *STATES[backend.name]] for backend in BACKENDS.values()]
    return markdown(["name", "device", "what", "state"], rows)


def variables() -> str:
    """Environment variables that are read, in Python or when the package is built."""
    from nerve_kernels.environment import VARIABLES

    rows = [
        [", ".join(f"`{name}`" for name in variable.names), variable.effect, variable.read] for variable in VARIABLES
    ]
    return markdown(["variable", "effect", "read"], rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "quality": quality,
    "speed": speed,
    "backends": backends,
    "variables": variables,
}


def filled(text: str) -> str:
    """A page with each of its marked tables made anew."""
    return MARKED.sub(lambda found: found[1] + TABLES[found["name"]]() + found[3], text)


def pages() -> list[Path]:
    """README and every page of the documentation that holds a marked table."""
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in texts if MARKED.search(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page.relative_to(ROOT))
