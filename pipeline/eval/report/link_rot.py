"""The report's look at link rot: what became of the addresses of the busiest domains, and of pages by their age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.eval.report.charts import NORMAL, WIDE, Bar, stacked_bars
from pipeline.eval.report.display import compact, percent

NUM_DOMAINS_SHOWN = 12
FATES = {
    "kept": "gave an image",
    "image_refused": "no usable image",
    "policy": "off limits",
    "transient": "failed, may come back",
    "permanent": "gone",
}
"""What can become of an address, the best first, in words."""


@dataclass(frozen=True, kw_only=True)
class LinkCount:
    """What became of the addresses of a domain, a host or a year; the counts behind `tried` add up to it."""

    by: str
    name: str | None
    """None where the page has no date."""
    tried: int
    kept: int
    transient: int
    permanent: int
    policy: int
    image_refused: int

    def share(self, fate: str) -> float:
        """Of all that were tried, those to which this happened."""
        count: int = getattr(self, fate)
        return count / self.tried


@dataclass(frozen=True, kw_only=True)
class LinkRotView:
    """Link rot as the page shows it."""

    num_tried: int
    share_kept: float
    shares: Sequence[tuple[str, str, float]]
    """(fate, in words, share of all that were tried), those that happened."""
    domains: Markup
    """Chart: the busiest domains."""
    years: Markup
    """Chart: the years in which the pages were captured; empty where all are of one."""
    oldest: LinkCount | None
    newest: LinkCount | None
    """The first and the last of these years."""


def view_link_rot(counts: Sequence[LinkCount]) -> LinkRotView | None:
    """Totals and charts; None where nothing was tried."""
    years = sorted((row for row in counts if row.by == "year" and row.tried), key=lambda row: row.name or "~")
    dated = [row for row in years if row.name is not None]
    num_tried = sum(row.tried for row in years)
    if num_tried == 0:
        return None
    shares = [(fate, words, sum(getattr(row, fate) for row in years) / num_tried) for fate, words in FATES.items()]
    domains = sorted((row for row in counts if row.by == "domain"), key=lambda row: (-row.tried, row.name or ""))
    has_ages = len(dated) > 1
    return LinkRotView(
        num_tried=num_tried,
        share_kept=sum(row.kept for row in years) / num_tried,
        shares=[share for share in shares if share[2]],
        domains=_chart("Domains", domains[:NUM_DOMAINS_SHOWN], NORMAL[0] if has_ages else WIDE[0]),
        years=_chart("Years of the pages", years, NORMAL[0]) if has_ages else Markup(""),
        oldest=dated[0] if has_ages else None,
        newest=dated[-1] if has_ages else None,
    )


def _chart(title: str, rows: Sequence[LinkCount], width: int) -> Markup:
    bars = [
        Bar(
            label=row.name or "no date",
            shares=[row.share(fate) for fate in FATES],
            note=f"{percent(row.share('kept'))} of {compact(row.tried)}",
        )
        for row in rows
    ]
    return stacked_bars(f"{title}: share of addresses that gave an image", bars, width)
