"""What the benchmarks share: claims measured in turns, written as a table, as JSON and as a plot.

A claim holds one list of figures per library, taken in turns (A B A B), so that a drift of the machine hits all alike.
Ratios are taken round by round and say how many times better the first library is, whatever the unit.
"""

import datetime
import json
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Claim:
    """Figures of one thing that was measured.

    Args:
        what: the thing.
        unit: of the figures.
        figures: library -> one figure per round; ours is the first.
        higher_is_better: whether the figures are rates.
    """

    what: str
    unit: str
    figures: dict[str, list[float]]
    higher_is_better: bool = False

    def ratios(self, library: str) -> list[float]:
        """How many times better ours is, per round."""
        ours, other = next(iter(self.figures.values())), self.figures[library]
        pairs = zip(ours, other, strict=True)
        return [mine / its if self.higher_is_better else its / mine for mine, its in pairs]


def table(claims: Iterable[Claim]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| what | library | median | least | greatest | times better than it |", "|---|---|---|---|---|---|"]
    for claim in claims:
        for index, (library, values) in enumerate(claim.figures.items()):
            numbers = [f"{number:.3g} {claim.unit}" for number in (statistics.median(values), min(values), max(values))]
            ratios = claim.ratios(library)
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if index else ""
            lines.append(f"| {claim.what} | {library} | {' | '.join(numbers)} | {ratio} |")
    return lines


def machine() -> str:
    """The processor's name where the system tells it, threads and the version of torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor())}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def commit() -> str:
    """Of what is measured; with "+" where files have changed since."""
    git = ["git", "describe", "--always", "--dirty=+"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def write(name: str, title: str, claims: list[Claim], notes: str, kind: str = "") -> str:
    """Writes results/<date>-<name><kind>.md, .json and .png.

    Args:
        name: of the script.
        title: of the page.
        claims: what was measured.
        notes: rounds, versions of peers.
        kind: of machine, where results of several are kept.

    Returns:
        The page.
    """
    today = datetime.date.today().isoformat()
    place = FOLDER / f"{today}-{name}{kind}"
    head = f"{today}, commit {commit()}, {machine()}; {notes}."
    made = f"Made by `make real && .venv/bin/python benchmarks/{name}.py`."
    page = "\n".join([f"# {title}", "", head, made, "", *table(claims), ""])
    FOLDER.mkdir(exist_ok=True)
    raw = {"date": today, "commit": commit(), "machine": machine(), "claims": [asdict(claim) for claim in claims]}
    place.with_suffix(".md").write_text(page)
    place.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    plot(claims, title, place.with_suffix(".png"))
    return page


def plot(claims: list[Claim], title: str, path: Path) -> None:
    """Bars: how many times better ours is than each peer, with the least and the greatest of the rounds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    bars = [(f"{claim.what}\nthan {peer}", claim.ratios(peer)) for claim in claims for peer in [*claim.figures][1:]]
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.55 * len(bars)))
    for place, (_, ratios) in enumerate(reversed(bars)):
        middle = statistics.median(ratios)
        spread = [[middle - min(ratios)], [max(ratios) - middle]]
        axes.barh(place, middle, xerr=spread, color="#3b6ea5", height=0.6, capsize=3)
        axes.text(max(ratios) + 0.03, place, f"{middle:.2f}", va="center")
    axes.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)], fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times better (1: alike)")
    axes.set_title(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
