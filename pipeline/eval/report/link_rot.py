"""Prepare the report's section on link rot: outcomes of image URLs, by domain and by the age of their page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.eval.report.charts import NORMAL, WIDE, Bar, stacked_bars
from pipeline.eval.report.display import compact, percent

NUM_DOMAINS_SHOWN = 12
OUTCOMES = {
    "kept": "gave an image",
    "image_refused": "no usable image",
    "policy": "not allowed",
    "transient": "temporary failure",
    "permanent": "permanent failure",
}
"""The possible outcomes of fetching a URL and their titles, best first."""


@dataclass(frozen=True, kw_only=True)
class LinkCount:
    """Outcomes for the URLs of a domain, a host or a year. The fields after `tried` add up to it."""

    by: str
    name: str | None
    """The domain, host or year; None for pages without a date."""
    tried: int
    kept: int
    transient: int
    permanent: int
    policy: int
    image_refused: int

    def share(self, outcome: str) -> float:
        """The share of the tried URLs with this outcome."""
        count: int = getattr(self, outcome)
        return count / self.tried


@dataclass(frozen=True, kw_only=True)
class LinkRotView:
    """The content of the section on link rot."""

    num_tried: int
    share_kept: float
    shares: Sequence[tuple[str, str, float]]
    """(outcome, title, share of the tried URLs), without outcomes that did not occur."""
    domains: Markup
    """Chart: the domains with the most URLs."""
    years: Markup
    """Chart: the years in which the pages were captured; empty if there is only one."""
    oldest: LinkCount | None
    newest: LinkCount | None
    """The last year; `oldest` is the first. Both are None if there is only one."""


def view_link_rot(counts: Sequence[LinkCount]) -> LinkRotView | None:
    """Compute the content of the section; None if no URLs were tried."""
    years = sorted((row for row in counts if row.by == "year" and row.tried), key=lambda row: row.name or "~")
    dated = [row for row in years if row.name is not None]
    num_tried = sum(row.tried for row in years)
    if num_tried == 0:
        return None
    shares = [
        (outcome, title, sum(getattr(row, outcome) for row in years) / num_tried) for outcome, title in OUTCOMES.items()
    ]
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
            shares=[row.share(outcome) for outcome in OUTCOMES],
            note=f"{percent(row.share('kept'))} of {compact(row.tried)}",
        )
        for row in rows
    ]
    return stacked_bars(f"{title}: share of URLs that gave an image", bars, width)
