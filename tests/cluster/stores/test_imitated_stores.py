"""Each operation of cluster.storage on each imitated store works, or raises the error that names its cause.

`EXPECTED` holds what does not simply work: the class of the error, by store and operation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import moto.s3.models
import pytest

from cluster import storage
from cluster.stores.errors import DamagedError
from cluster.stores.s3 import probe, requests, writing
from tests.cluster.stores.operations import NAMES, OPERATIONS, READING, SMALL, WRITING, Trial, outcome
from tests.stores import catalog, checksums, transfers
from tests.stores.catalog import Quirks
from tests.stores.certificates import PrivateAuthority
from tests.stores.imitated import ImitatedStore
from tests.stores.trials.clients import client_of

PART_BYTES = 10_000
WRITES = (*WRITING, "ensure_writable")
PUTS = ("put_twice", "put_again", "ensure_writable")
READS = ("read", "read_range", "put_twice", "ensure_writable")
"""An object that exists is read by the operation that would have written it."""
DELETES = ("delete_file", "delete_folder", "delete_files", "put_again")
LISTED = ("exists", "list_folder", "delete_file", "delete_folder", "put_again", "ensure_writable")
EVERYTHING = tuple(OPERATIONS)


def raises(kind: str, operations: tuple[str, ...]) -> dict[str, str]:
    return dict.fromkeys(operations, kind)


EXPECTED: dict[str, dict[str, str]] = {
    "ignores If-None-Match": raises("UnsupportedError", PUTS),
    "answers 501 to If-None-Match": raises("UnsupportedError", PUTS),
    "answers 400 to If-None-Match": raises("UnsupportedError", PUTS),
    "lets racing conditional puts win": raises("UnsupportedError", PUTS),
    "inverts conditional puts": raises("UnsupportedError", PUTS),
    "keeps deleted names": raises("UnsupportedError", ("put_again",)),
    "shows objects late": raises("UnsupportedError", WRITES),
    "lists late": raises("UnsupportedError", ("ensure_writable",)),
    "denies each deletion": raises("AccessDeniedError", DELETES),
    "locks the first object": raises("AccessDeniedError", ("delete_folder", "delete_files")),
    "denies everything": {**raises("AccessDeniedError", EVERYTHING), "check_reachable": "works"},
    "denies reads": {**raises("AccessDeniedError", (*WRITES, "read", "read_range", "exists"))},
    "denies contents": raises("AccessDeniedError", READS),
    "denies writes": raises("AccessDeniedError", WRITES),
    "denies listings": raises("AccessDeniedError", LISTED),
    "denies deletions": raises("AccessDeniedError", DELETES),
    "denies the key of contents": raises("AccessDeniedError", READS),
    "has a disabled key": raises("AccessDeniedError", (*WRITES, "read", "read_range")),
    "is read-only": raises("AccessDeniedError", (*WRITES, *DELETES)),
    "has archived the contents": raises("AccessDeniedError", READS),
    "finds the token expired": raises("CredentialsError", EVERYTHING),
    "finds the request expired": raises("CredentialsError", EVERYTHING),
    "does not know the key id": raises("CredentialsError", EVERYTHING),
    "finds the signature wrong": raises("CredentialsError", EVERYTHING),
    "says 401": raises("CredentialsError", EVERYTHING),
    "finds the clock wrong": raises("ClockError", EVERYTHING),
    "has no such bucket": raises("NoSuchBucketError", EVERYTHING),
    "has moved the bucket": raises("NoSuchBucketError", EVERYTHING),
    "is in another region": raises("NoSuchBucketError", EVERYTHING),
    "has an unnamed region": raises("NoSuchBucketError", EVERYTHING),
    "is full": raises("StorageFullError", WRITES),
    "has a quota": raises("StorageFullError", WRITES),
    "has a quota of objects": raises("StorageFullError", WRITES),
    "slows down for ever": raises("ThrottledError", EVERYTHING),
    "wants virtual hosts": raises("UnsupportedError", EVERYTHING),
    "wants virtual hosts as COS": raises("UnsupportedError", EVERYTHING),
    "is a page": raises("UnreachableError", EVERYTHING),
    "is a well-formed page": raises("UnreachableError", EVERYTHING),
    "answers with nothing": raises("UnreachableError", EVERYTHING),
    "redirects to TLS": raises("UnreachableError", EVERYTHING),
    "redirects to a portal": raises("UnreachableError", EVERYTHING),
    "takes small bodies": raises("UnsupportedError", ("write_large",)),
    "is unknown to Cloudflare": raises("ThrottledError", EVERYTHING),
    "compresses": raises("UnsupportedError", READS),
    "loses the answer to complete": raises("UnreachableError", ("write_large", "ensure_writable")),
    "fails to complete": raises("ThrottledError", ("write_large", "ensure_writable")),
    "cuts contents": raises("UnreachableError", READS),
    "cuts contents and checks them": raises("UnreachableError", READS),
    "breaks off": raises("UnreachableError", READS),
    "hangs up": raises("UnreachableError", EVERYTHING),
}
AT_FIRST_OPERATIONS = ("write_small", "write_large", "put_twice", "read")
"""They are enough for what passes when it is repeated, since each repetition waits."""


@dataclass
class Stores:
    """The imitated stores, whose quirks are replaced by each test, so that clients are made once."""

    plain: ImitatedStore
    encrypted: ImitatedStore
    authority: PrivateAuthority


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    authority, server = PrivateAuthority(tmp_path_factory.mktemp("authority")), os.environ["AWS_ENDPOINT_URL"]
    with ImitatedStore(server) as plain, ImitatedStore(server, context=authority.context()) as encrypted:
        yield Stores(plain, encrypted, authority)


@pytest.fixture(autouse=True)
def _small_and_quick(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are small, no request is repeated by boto3, and pauses are short."""
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", PART_BYTES)
    monkeypatch.setattr(writing, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(requests, "_DELAY_SECONDS", 0.0001)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(stores.authority.certificate))


def forget() -> None:
    """Forget what this process knows of stores, as a new worker process does."""
    requests._lacking.clear()
    writing._conditional.clear()
    probe._probed.clear()


@pytest.fixture
def trial(s3: str, tmp_path: Path) -> Trial:
    server = client_of(os.environ["AWS_ENDPOINT_URL"])
    return Trial(s3.removeprefix("s3://"), tmp_path.name, server, large_bytes=2 * PART_BYTES + 1)


def outcomes(store: ImitatedStore, quirks: Quirks, trial: Trial, names: tuple[str, ...]) -> dict[str, str]:
    """What does not work, by operation."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        trial.prepare()
        for name in names:
            forget()
            own = trial if name in READING else replace(trial, folder_key=f"{trial.folder_key}-{name}")
            if name not in (*READING, *WRITING):
                own.prepare()
            store.quirks = quirks()
            found[name] = outcome(OPERATIONS[name], own)
            store.quirks = ()
    return {name: result for name, result in found.items() if result != "works"}


ALWAYS = {
    **catalog.CONDITIONS,
    **catalog.CHECKSUMS,
    **catalog.LISTINGS,
    **catalog.REMOVALS,
    **catalog.REFUSALS,
    **catalog.NETWORKS,
}


def operations_of(name: str) -> tuple[str, ...]:
    """The operations that make requests of the kind that is unusual in a store."""
    if name in catalog.LISTINGS:
        return LISTED
    if name in catalog.REMOVALS:
        return (*DELETES, "ensure_writable")
    return EVERYTHING if name in {**catalog.REFUSALS, **catalog.NETWORKS} else (*WRITES, "read", "read_range")


def expected(name: str) -> dict[str, str]:
    return {operation: kind for operation, kind in EXPECTED.get(name, {}).items() if kind != "works"}


@pytest.mark.parametrize("name", list(ALWAYS))
def test_every_operation_works_or_names_the_cause(stores: Stores, trial: Trial, name: str) -> None:
    assert outcomes(stores.plain, ALWAYS[name], trial, operations_of(name)) == expected(name)


@pytest.mark.parametrize("name", list(catalog.OVER_TLS))
def test_every_operation_works_over_tls(stores: Stores, trial: Trial, name: str) -> None:
    assert outcomes(stores.encrypted, catalog.OVER_TLS[name], trial, (*WRITES, "read", "read_range")) == {}


@pytest.mark.parametrize("name", catalog.AT_FIRST)
def test_what_passes_is_repeated(stores: Stores, trial: Trial, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "5")
    assert outcomes(stores.plain, catalog.AT_FIRST[name], trial, AT_FIRST_OPERATIONS) == {}


def test_every_expectation_has_a_store() -> None:
    assert set(EXPECTED) <= set(ALWAYS)
    assert {operation for row in EXPECTED.values() for operation in row} <= set(OPERATIONS)


@pytest.mark.parametrize(
    "name",
    [
        *("refuses checksums", "refuses CRC32", "names unsupported headers"),
        *("has no ListObjectsV2", "gives no token"),
        *("needs Content-MD5 to delete", "has no DeleteObjects", "says 405 to DeleteObjects"),
    ],
)
def test_what_a_store_lacks_is_found_out_once(
    stores: Stores, trial: Trial, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", stores.plain.endpoint)
    names = ("ensure_writable", "list_folder", "delete_files", "write_small", "put_again", "write_large")
    refused = []
    for _ in range(2):
        trial.prepare()
        stores.plain.quirks, begin = ALWAYS[name](), len(stores.plain.seen)
        assert {operation: outcome(OPERATIONS[operation], trial) for operation in names} == dict.fromkeys(
            names, "works"
        )
        stores.plain.quirks = ()
        refused.append([seen for seen in stores.plain.seen[begin:] if seen.status in (400, 405, 501)])
        for written in ("new", "record"):
            trial.server.delete_object(Bucket=trial.bucket, Key=f"{trial.folder_key}/{written}")
    assert refused[1] == [], refused[0]


def test_a_large_object_in_parts_of_the_real_size(
    stores: Stores, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", stores.encrypted.endpoint)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(stores.authority.certificate))
    stores.encrypted.quirks, begin = (checksums.refuses_checksum("SHA256"),), len(stores.encrypted.seen)
    large = replace(trial, large_bytes=33 * 2**20)
    assert outcome(OPERATIONS["write_large"], large) == "works"
    assert stores.encrypted.operations[begin:].count("UploadPart") == 2
    stores.encrypted.quirks = ()


@pytest.mark.parametrize(("times", "is_damaged"), [(1, False), (None, True)])
def test_only_bytes_that_differ_twice_are_damage(
    stores: Stores, trial: Trial, monkeypatch: pytest.MonkeyPatch, times: int | None, is_damaged: bool
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", stores.plain.endpoint)
    trial.prepare()
    stores.plain.quirks = (transfers.flipped_bit(times),)
    with pytest.raises(DamagedError, match="sha256") if is_damaged else nullcontext():
        storage.check_content(trial.uri(NAMES[0]), len(SMALL), hashlib.sha256(SMALL).hexdigest())
    stores.plain.quirks = ()
