"""The plots of the monthly report, as SVG that stands in the page: text as text, colours and fonts from the page.

They are drawn in the page's own palette: what matplotlib writes as a marked colour becomes a CSS variable, so that one
drawing serves light, dark and paper. Bars that stand together differ in lightness too, and so in print without colour.
What is drawn is the same for the same figures: there is no time in it, and ids come from the plot's name.
"""

import io
import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from bot.audit.figures import BIN_EDGES_S, Day, Row, Wait

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_LABEL: Final = 28

_COLOURS: Final = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--strong)",
    "#050505": "var(--soft)",
    "#060606": "var(--warn)",
}
_INK, _MUTED, _LINE, _STRONG, _SOFT, _WARN = _COLOURS

_FULL_WIDTH: Final = 7.2
"""Inches between the margins of an A4 page."""
_BAR_HEIGHT: Final = 0.205
_TEXT_SIZE: Final = 7.5

_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": _TEXT_SIZE,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
}


class PlotsMissing(Exception):
    """The library that draws is not installed."""


def require_plots() -> None:
    """Raises PlotsMissing."""
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415
    except ImportError:
        raise PlotsMissing(
            "the report's plots need matplotlib: `uv sync --extra report`, or `pip install 'upbit-cancel-bot[report]'`"
        ) from None


def days_plot(days: Sequence[Day]) -> str:
    """Requests that ended, a bar a day: canceled, and above it otherwise."""
    places = range(1, len(days) + 1)
    canceled = [day.canceled for day in days]
    otherwise = [day.otherwise for day in days]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.bar(places, canceled, color=_STRONG, width=0.74, label="canceled")
        axes.bar(places, otherwise, bottom=canceled, color=_SOFT, width=0.74, label="ended otherwise")
        weekends = [place for place, day in zip(places, days, strict=True) if day.date.weekday() >= 5]  # noqa: PLR2004
        axes.set_xticks(list(places), [str(place) for place in places])
        for place, label in zip(places, axes.get_xticklabels(), strict=True):
            label.set_color(_MUTED if place in weekends else _INK)
        axes.set_xlim(0.4, len(days) + 0.6)
        _count_axis(axes.yaxis, axes, top=max(c + o for c, o in zip(canceled, otherwise, strict=True)))
        axes.tick_params(axis="x", length=0)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.0)

    return _svg("days", draw, height=2.1, title="Requests that ended, by day")


def bars_plot(name: str, rows: Sequence[tuple[str, int]], *, title: str, warned: frozenset[str] = frozenset()) -> str:
    """A horizontal bar a row, its number beside it; the `warned` ones in the colour of a warning, and hatched."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        largest = max((count for _, count in rows), default=0) or 1
        for place, (label, count) in enumerate(rows):
            is_warned = label in warned
            axes.barh(
                place,
                count,
                height=0.66,
                color=_WARN if is_warned else _STRONG,
                hatch="////" if is_warned else None,
                edgecolor=_LINE if is_warned else _STRONG,
                linewidth=0,
            )
            axes.text(count + largest * 0.012, place, f"{count:,}", va="center", ha="left", color=_INK)
        axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, largest * 1.1)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)

    return _svg(name, draw, height=0.12 + _BAR_HEIGHT * max(len(rows), 1), title=title)


def parts_plot(name: str, rows: Sequence[Row], *, title: str) -> str:
    """A horizontal bar a row of two counts: how many ended, and how many of these were canceled."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        largest = max((row.counts[0] for row in rows), default=0) or 1
        places = range(len(rows))
        canceled = [row.counts[1] for row in rows]
        axes.barh(places, canceled, height=0.66, color=_STRONG, label="canceled")
        otherwise = [row.counts[0] - row.counts[1] for row in rows]
        axes.barh(places, otherwise, left=canceled, height=0.66, color=_SOFT, label="ended otherwise")
        for place, row in zip(places, rows, strict=True):
            told = f"{row.counts[1]:,} of {row.counts[0]:,}"
            axes.text(row.counts[0] + largest * 0.012, place, told, va="center", ha="left", color=_INK)
        axes.set_yticks(places, [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, largest * 1.2)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.0)

    return _svg(name, draw, height=0.42 + _BAR_HEIGHT * max(len(rows), 1), title=title)


def waits_plot(waits: Sequence[Wait]) -> str:
    """How long each step took: a distribution each, over the same axis of times, with p50 and p90."""
    edges = [_seconds(edge) for edge in BIN_EDGES_S]

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(len(waits), 1, sharex=True, squeeze=False)[:, 0]
        for axes, wait in zip(panels, waits, strict=True):
            axes.bar(range(len(edges)), wait.bins, width=0.92, align="edge", color=_SOFT)
            for value, name, ends in ((wait.p50, "p50", "right"), (wait.p90, "p90", "left")):
                if wait.count:
                    place = _bin_place(value)
                    axes.axvline(
                        place, ymax=0.96, color=_STRONG, linewidth=1.6, linestyle="-" if name == "p50" else "--"
                    )
                    shift = -0.12 if ends == "right" else 0.12
                    axes.text(place + shift, max(wait.bins) * 1.16, name, ha=ends, va="center", color=_INK)
            axes.set_title(_capital(wait.name), loc="left", fontsize=_TEXT_SIZE, color=_INK, pad=3)
            _count_axis(axes.yaxis, axes, top=max(wait.bins, default=0) * 1.28, ticks=3)
            axes.set_xlim(0, len(edges))
            axes.tick_params(axis="x", length=2)
        panels[-1].set_xticks(range(len(edges)), edges)

    return _svg("waits", draw, height=1.32 * len(waits), title="How long the steps of a cancel took")


# How they are drawn


def _count_axis(axis: Any, axes: "Axes", *, top: float, ticks: int = 4) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415

    axis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda count, _place: f"{count:,.0f}"))
    axes.set_ylim(0, max(top * 1.04, 1))
    axes.grid(axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=_MUTED)
    axes.spines["left"].set_visible(False)


def _bin_place(seconds: float) -> float:
    """Where a time stands on the axis of bins: in between by its share of the bin; in the last one in the middle."""
    place = max(bisect_right(BIN_EDGES_S, seconds) - 1, 0)
    if place == len(BIN_EDGES_S) - 1:
        return place + 0.5
    start, until = BIN_EDGES_S[place], BIN_EDGES_S[place + 1]
    return place + (seconds - start) / (until - start)


def _seconds(edge: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if edge >= length:
            return f"{edge / length:g} {unit}"
    return f"{edge:g} s" if edge else "0"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(label: str) -> str:
    printable = "".join(char if char.isprintable() else "\ufffd" for char in label)
    return printable if len(printable) <= LONGEST_LABEL else printable[: LONGEST_LABEL - 1] + "…"


def _svg(name: str, draw: Any, *, height: float, title: str) -> str:
    """The drawing as one element for the page. `height` in inches."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The letters come from the reader's fonts, whatever is missing from the ones that the text is measured with.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(
            figsize=(_FULL_WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, hspace=0.06)
        )
        draw(figure)
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return _for_page(written.getvalue(), name=name, title=title)


_OPENING: Final = re.compile(r'<svg [^>]*viewBox="([0-9. ]+)"[^>]*>')
_IDS: Final = re.compile(r'(?<= )(id="|xlink:href="#)|(?<=[ :"])(url\(#)')
_FONT: Final = re.compile(r"(?<=font-family: )[^;\"]+|(?<=px )'DejaVu Sans'[^;\"]*")


def _for_page(svg: str, *, name: str, title: str) -> str:
    """Without what belongs to a file of its own: prologue, size, fonts, ids that other plots have too, and styles."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = _IDS.sub(lambda found: f"{found[0]}{name}-", svg)
    svg = _FONT.sub("inherit", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return _OPENING.sub(rf'<svg class="plot" viewBox="\1" role="img" aria-label="{title}">', svg, count=1)
