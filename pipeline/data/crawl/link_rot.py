"""Measure link rot: the outcomes of a crawl's URLs by registered domain, by host and by age of the page.

Pages link to images for years, but many images disappear sooner. Sites differ in how many images are still available,
and in whether the others are lost (permanent), may return (transient) or may not be fetched (policy). Losses grow with
the age of the page. Counts are made per part and summed by name; only the busiest domains and hosts are kept.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.web.addresses import registered_domain
from pipeline.reasons import IMAGE_CHECKS, Reason, retry_class
from pipeline.schemas import LINK_ROT

_HOST = r"^https?://(?P<host>\[[^\]/]*\]|[^/?#:]+)"
_TRIED, *_FATES = LINK_ROT.names[2:]


def count(table: pa.Table) -> pa.Table:
    """Count LINK_ROT over rows of FETCHED, including rows with a reason.

    Rows that the early balance dropped were not tried and do not count, nor do images that their source contained.

    Args:
        table: columns url, page_date and reason.

    Raises:
        ValueError: a row has a reason that neither fetching nor the image checks can give.
    """
    host = pc.struct_field(pc.extract_regex(table["url"], _HOST), "host")
    balanced_out = pc.fill_null(pc.equal(table["reason"], Reason.BALANCED_OUT.value), False)
    tried = pc.and_(pc.is_valid(host), pc.invert(balanced_out))
    host, table = host.filter(tried), table.filter(tried)
    fate = _fate_of(table["reason"])
    counts = [pa.repeat(1, table.num_rows), *(pc.equal(fate, name) for name in _FATES)]
    by_host = _rows("host", host, counts)
    domain = pa.array([registered_domain(f"http://{name}/") for name in by_host["name"].to_pylist()], pa.string())
    by_domain = _rows("domain", domain, by_host.columns[2:])
    by_year = _rows("year", pc.year(table["page_date"]).cast(pa.string()), counts)
    return pa.concat_tables([by_domain, by_host, by_year])


def add(table: pa.Table) -> pa.Table:
    """Sum LINK_ROT of disjoint sets of rows: one row per name, in ascending order."""
    sums = table.group_by(["by", "name"]).aggregate([(name, "sum") for name in (_TRIED, *_FATES)])
    return sums.rename_columns(LINK_ROT.names).cast(LINK_ROT).sort_by([("by", "ascending"), ("name", "ascending")])


def busiest_names(table: pa.Table, num_names: int) -> pa.Table:
    """The domains and hosts with the most tried URLs in descending order (ties by name), then every year.

    Args:
        table: LINK_ROT, one row per name.
        num_names: maximum number of domains, and of hosts.
    """
    order = [("tried", "descending"), ("name", "ascending")]
    tables = (table.filter(pc.equal(table["by"], by)).sort_by(order).slice(0, num_names) for by in ("domain", "host"))
    return pa.concat_tables([*tables, table.filter(pc.equal(table["by"], "year")).sort_by("name")])


def _rows(by: str, names: pa.ChunkedArray | pa.Array, counts: list[pa.ChunkedArray | pa.Array]) -> pa.Table:
    columns = [column.cast(pa.int64()) for column in counts]
    return add(pa.Table.from_arrays([pa.repeat(by, len(names)), names, *columns], names=LINK_ROT.names))


def _fate_of(reasons: pa.ChunkedArray) -> pa.Array:
    """The column of LINK_ROT in which each row is counted."""
    fates = {reason: _fate(reason) for reason in reasons.unique().to_pylist()}
    encoded = reasons.combine_chunks().dictionary_encode(null_encoding="encode")
    return pa.array([fates[reason] for reason in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)


def _fate(reason: str | None) -> str:
    if reason is None:
        return "kept"
    return "image_refused" if reason in IMAGE_CHECKS else retry_class(reason)
