"""The stores of the matrix: how each is opened, and what is expected of the commands on it."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.stores.cells import Outcome
from tests.faults.stores.commands import COMMANDS, WRITING
from tests.stores import addressing, catalog, conditions, listings, refusals, transfers
from tests.stores.catalog import Quirks
from tests.stores.certificates import PrivateAuthority
from tests.stores.forward_proxy import ForwardProxy
from tests.stores.imitated import ImitatedStore, Quirk, first, only

Variables = Mapping[str, str | None]
"""Environment variables; None: the variable is not set."""

CONTENTS = r"/(data|imported|addresses|features|checkpoints)/"
"""Paths of files that commands read or write in the middle of their work."""
RECORDED = r"/(data|manifests|fetched|checkpoints|features|model)/"
"""Paths of files whose checksums are recorded."""
ON_CONTENTS = ("import", "curate", "pretrain", "benchmark", "verify", "diff", "export", "tombstone", "compact")
"""Commands that read or write such files."""
PROBING = ("import", "curate", "pretrain", "benchmark", "export")
"""Commands with an output, in which they try the store."""
FEW: Variables = {"AWS_MAX_ATTEMPTS": "2"}
"""With ten attempts, as by default, a lasting failure in the middle of the work takes minutes."""


@dataclass(frozen=True)
class Site:
    """What stores are opened with."""

    server: str
    """The endpoint of the server without quirks."""
    folder: Path
    """For certificates and configurations."""


Opener = Callable[[Site], AbstractContextManager[Variables]]


@dataclass(frozen=True)
class Store:
    """A store, or a network or a configuration before it."""

    name: str
    open: Opener
    """Opens it, and gives the variables by which a user reaches it."""
    expected: Mapping[str, Outcome] = field(default_factory=dict)
    """The outcomes by command; the others simply work."""
    cause: str = ""
    """A regular expression of what is said by every command that does not simply work."""
    keeps_files: bool = False
    """Whether nothing can be deleted, so that more is left than elsewhere."""


def _imitated(quirks: Quirks, variables: Variables | None = None) -> Opener:
    @contextmanager
    def opened(site: Site) -> Iterator[Variables]:
        with ImitatedStore(site.server, *quirks()) as store:
            yield {"AWS_ENDPOINT_URL": store.endpoint, **(variables or {})}

    return opened


def _quirky(*quirks: Quirk, variables: Variables | None = None) -> Opener:
    return _imitated(lambda: quirks, variables)


def _named(name: str) -> Opener:
    """The store of this name in the catalog."""
    catalogs = (catalog.CONDITIONS, catalog.CHECKSUMS, catalog.LISTINGS, catalog.REMOVALS)
    return _imitated(
        {name: quirks for part in (*catalogs, catalog.REFUSALS, catalog.NETWORKS) for name, quirks in part.items()}[
            name
        ]
    )


def _encrypted(name: str | None = None, *, knows_authority: bool = True) -> Opener:
    """A store that speaks TLS, with the quirks of this name in the catalog."""

    @contextmanager
    def opened(site: Site) -> Iterator[Variables]:
        authority = PrivateAuthority(_new_folder(site))
        quirks = catalog.OVER_TLS[name]() if name else ()
        with ImitatedStore(site.server, *quirks, context=authority.context()) as store:
            bundle = str(authority.certificate) if knows_authority else None
            yield {"AWS_ENDPOINT_URL": store.endpoint, "AWS_CA_BUNDLE": bundle}

    return opened


@contextmanager
def _of_profile(site: Site) -> Iterator[Variables]:
    """Endpoint, region, keys and the certificate authority are in a profile."""
    folder = _new_folder(site)
    authority = PrivateAuthority(folder)
    with ImitatedStore(site.server, context=authority.context()) as store:
        lines = ("region = eu-west-1", f"endpoint_url = {store.endpoint}", f"ca_bundle = {authority.certificate}")
        keys = ("aws_access_key_id = test", "aws_secret_access_key = test")
        (folder / "config").write_text("\n".join(["[profile lab]", *lines, *keys]), encoding="utf-8")
        unset = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"))
        yield {**unset, "AWS_CONFIG_FILE": str(folder / "config"), "AWS_PROFILE": "lab"}


@contextmanager
def _behind_proxy(site: Site) -> Iterator[Variables]:
    """Only the proxy of the network knows the store, which speaks TLS and has the bucket in the host name."""
    folder = _new_folder(site)
    authority = PrivateAuthority(folder)
    (folder / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n", encoding="utf-8")
    virtual = addressing.virtual_host_only("store.internal")
    with (
        ImitatedStore(site.server, virtual, context=authority.context()) as store,
        ForwardProxy({"store.internal": store.port}) as proxy,
    ):
        yield {
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy.endpoint),
            "AWS_ENDPOINT_URL": store.endpoint_at("store.internal"),
            "AWS_CA_BUNDLE": str(authority.certificate),
            "AWS_CONFIG_FILE": str(folder / "config"),
        }


@contextmanager
def _nothing_listens(_: Site) -> Iterator[Variables]:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{reserved.getsockname()[1]}"}


@contextmanager
def _without_keys(site: Site) -> Iterator[Variables]:
    yield {
        "AWS_ENDPOINT_URL": site.server,
        "AWS_ACCESS_KEY_ID": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _new_folder(site: Site) -> Path:
    return Path(tempfile.mkdtemp(dir=site.folder))


def _hangs_up_at_each(number: int) -> Quirk:
    count = iter(range(10**9))

    def quirk(request: object, forward: Callable[[object], object]) -> object:
        return transfers.hangs_up() if next(count) % number == number - 1 else forward(request)

    return quirk  # type: ignore[return-value]


def _all(outcome: Outcome, names: tuple[str, ...], **others: Outcome) -> Mapping[str, Outcome]:
    return {**dict.fromkeys(names, outcome), **others}


def _refused(name: str, opened: Opener, cause: str, on: tuple[str, ...] = tuple(COMMANDS), **others: Outcome) -> Store:
    return Store(name, opened, _all("refused", on, **others), cause)


def _around(
    name: str, opened: Opener, said: str, on: tuple[str, ...] = WRITING, *, keeps_files: bool = False, **others: Outcome
) -> Store:
    return Store(name, opened, _all("around", on, **others), said, keeps_files)


_CONDITIONAL = "conditional puts"
_CHECKSUMS = "lacks the checksums of S3, and the older way is used"
_DELETION = "lacks the deletion of many objects, and the older way is used"

WORKING = (
    Store("plain", _quirky()),
    Store("has weak ETags", _named("has weak tags")),
    Store("ignores ranges, has no ETags", _quirky(conditions.ignores("Range"), conditions.no_tags)),
    Store("lists small pages, raw keys", _quirky(listings.small_pages(3), listings.raw_keys)),
    Store("takes one write a second (R2, 429)", _imitated(catalog.AT_FIRST["takes one write a second"])),
    Store("asks to slow down at first (503)", _imitated(lambda: (first(3, refusals.busy),))),
    Store("hangs up at every 10th request", _imitated(lambda: (_hangs_up_at_each(10),))),
    Store("private authority, AWS_CA_BUNDLE", _encrypted()),
    Store("everything in a profile, with TLS", _of_profile),
    Store("behind a proxy, bucket in the host name, TLS", _behind_proxy),
)
WORKED_AROUND = (
    _around("refuses checksums (501)", _named("refuses checksums"), _CHECKSUMS),
    _around("names unsupported headers (B2, 400)", _named("names unsupported headers"), _CHECKSUMS),
    _around("refuses trailers over TLS (R2, 401)", _encrypted("refuses trailers as R2"), _CHECKSUMS),
    _around("stores the framing of checksums (TLS)", _encrypted("stores the framing"), _CHECKSUMS),
    _around("needs Content-MD5 to delete", _named("needs Content-MD5 to delete"), _DELETION),
    _around("has no DeleteObjects (501)", _named("has no DeleteObjects"), _DELETION),
    _around(
        "denies deletions",
        _named("denies deletions"),
        "delete|remove",
        keeps_files=True,
        gc="refused",
        tombstone="works",
    ),
    _around(
        "has no list type 2, small pages",
        _quirky(listings.only_first_version, listings.small_pages(1)),
        "lacks list type 2",
        tuple(COMMANDS),
    ),
    _around(
        "flips a bit once",
        _imitated(lambda: (only(transfers.flipped_bit(1), "GetObject", RECORDED),)),
        "first read",
        ("verify",),
    ),
    _around("has another clock", _named("has another clock"), "clock", PROBING),
)
REFUSED = (
    _refused("ignores If-None-Match", _named("ignores If-None-Match"), _CONDITIONAL, WRITING, gc="works"),
    _refused("answers 501 to If-None-Match", _named("answers 501 to If-None-Match"), _CONDITIONAL, WRITING, gc="works"),
    _refused(
        "lets racing conditional puts win",
        _quirky(conditions.races(0.5)),
        _CONDITIONAL,
        WRITING,
        gc="works",
    ),
    _refused("lists late", _named("lists late"), "listing", WRITING),
    _refused("private authority, unknown", _encrypted(knows_authority=False), "AWS_CA_BUNDLE"),
    _refused("nothing listens", _nothing_listens, "cannot be reached"),
    _refused("no keys", _without_keys, "no usable credentials"),
    _refused("is a page", _named("is a page"), "not one of S3"),
    _refused("redirects to TLS", _named("redirects to TLS"), "redirects"),
    _refused("is silent", _quirky(transfers.silent, variables=FEW), "silent"),
    _refused("finds the token expired", _named("finds the token expired"), "expired"),
    _refused("finds the clock wrong", _named("finds the clock wrong"), "clock"),
    _refused("has no such bucket", _named("has no such bucket"), "bucket does not exist"),
    _refused("denies listings", _named("denies listings"), "access denied"),
    _refused("is read-only", _named("is read-only"), "access denied", WRITING),
    _refused("is full", _named("is full"), "full", WRITING),
    _refused("slows down for ever", _named("slows down for ever"), "slow down"),
    _refused("cuts contents", _named("cuts contents"), "bytes"),
)
REFUSED_IN_THE_MIDDLE = (
    _refused(
        "denies contents", _quirky(only(refusals.access_denied, "GetObject", CONTENTS)), "access denied", ON_CONTENTS
    ),
    _refused(
        "the token expires in the middle", _quirky(only(refusals.expired_token, path=CONTENTS)), "expired", ON_CONTENTS
    ),
    _refused(
        "is full in the middle",
        _quirky(only(refusals.storage_full, "PutObject", CONTENTS)),
        "full",
        ("import", "curate", "pretrain", "benchmark", "compact"),
    ),
    _refused(
        "slows down in the middle",
        _quirky(only(refusals.slow_down, path=CONTENTS), variables=FEW),
        "slow down",
        ON_CONTENTS,
    ),
    _refused(
        "is silent in the middle", _quirky(only(transfers.silent, path=CONTENTS), variables=FEW), "silent", ON_CONTENTS
    ),
    _refused(
        "has damaged shards",
        _quirky(only(transfers.flipped_bit(), "GetObject", "/data/")),
        "damaged",
        ON_CONTENTS,
        benchmark="works",
    ),
)
STORES = (*WORKING, *WORKED_AROUND, *REFUSED, *REFUSED_IN_THE_MIDDLE)
