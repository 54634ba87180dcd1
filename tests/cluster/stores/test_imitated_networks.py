"""Certificates, proxies, names and silence between cluster.storage and a store: it works, or names the cause."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.stores.s3 import client, requests
from tests.cluster.stores.operations import OPERATIONS, Trial, outcome
from tests.stores import addressing, transfers
from tests.stores.certificates import PrivateAuthority
from tests.stores.forward_proxy import ForwardProxy
from tests.stores.imitated import ImitatedStore, Quirk
from tests.stores.trials.clients import client_of

NAMES = ("read", "read_range", "list_folder", "ensure_writable", "write_small", "put_twice", "delete_folder")
"""In an order in which each finds the files that it needs."""


@pytest.fixture
def open_store() -> Iterator[Callable[..., ImitatedStore]]:
    """Open an imitated store with quirks, until the test ends."""
    server = os.environ["AWS_ENDPOINT_URL"]
    with ExitStack() as stack:

        def open_it(*quirks: Quirk, **options: Any) -> ImitatedStore:
            return stack.enter_context(ImitatedStore(server, *quirks, **options))

        yield open_it


@pytest.fixture
def trial(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Five files in a folder. Requests are tried once, pauses are short, and settings of this machine do not count."""
    for name in [name for name in os.environ if name.lower().endswith(("_proxy", "ca_bundle", "ssl_cert_file"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(requests, "_DELAY_SECONDS", 0.0001)
    trial = Trial(s3.removeprefix("s3://"), tmp_path.name, client_of(os.environ["AWS_ENDPOINT_URL"]), large_bytes=1)
    trial.prepare()
    return trial


@pytest.fixture
def authority(tmp_path: Path) -> PrivateAuthority:
    return PrivateAuthority(tmp_path)


def found(trial: Trial) -> dict[str, str]:
    """The outcome of each operation."""
    return {name: outcome(OPERATIONS[name], trial) for name in NAMES}


def expect(kind: str) -> dict[str, str]:
    return dict.fromkeys(NAMES, kind)


def profile(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A file ~/.aws/config with this text in the default profile."""
    file = folder / "config"
    file.write_text(f"[default]\n{text}\n", encoding="utf-8")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))


@pytest.mark.parametrize("where", ["AWS_CA_BUNDLE", "profile"])
def test_the_certificate_of_a_private_authority(
    open_store: Callable[..., ImitatedStore],
    trial: Trial,
    authority: PrivateAuthority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", open_store(context=authority.context()).endpoint)
    if where == "profile":
        profile(tmp_path, monkeypatch, f"ca_bundle = {authority.certificate}")
    else:
        monkeypatch.setenv(where, str(authority.certificate))
    assert found(trial) == expect("works")


@pytest.mark.parametrize("case", ["unknown", "expired", "of another name", "missing file"])
def test_certificates_that_fail(
    open_store: Callable[..., ImitatedStore],
    trial: Trial,
    authority: PrivateAuthority,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    names = ("store.example",) if case == "of another name" else ("127.0.0.1",)
    store = open_store(context=authority.context(names, expired=case == "expired"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    bundle = {"unknown": "", "missing file": "/nowhere/authority.pem"}.get(case, str(authority.certificate))
    if bundle:
        monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
    assert found(trial) == expect("CertificateError")
    assert store.seen == []


@pytest.mark.parametrize("speaks", ["http", "https"])
def test_the_wrong_scheme(
    open_store: Callable[..., ImitatedStore],
    trial: Trial,
    authority: PrivateAuthority,
    monkeypatch: pytest.MonkeyPatch,
    speaks: str,
) -> None:
    """It is no matter of certificates: nobody should look for one."""
    store = open_store(context=authority.context() if speaks == "https" else None)
    other = {"http": "https", "https": "http"}[speaks]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{other}://127.0.0.1:{store.port}")
    assert found(trial) == expect("UnreachableError")


def test_the_endpoint_of_a_profile(
    open_store: Callable[..., ImitatedStore], trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    profile(tmp_path, monkeypatch, f"endpoint_url = {store.endpoint}")
    assert found(trial) == expect("works")
    assert len(store.seen) > len(NAMES)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_store_behind_a_proxy(
    open_store: Callable[..., ImitatedStore],
    trial: Trial,
    authority: PrivateAuthority,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    store = open_store(context=authority.context() if scheme == "https" else None)
    with ForwardProxy({"store.internal": store.port}) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint_at("store.internal"))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
        monkeypatch.setenv(f"{scheme}_proxy", proxy.endpoint)
        assert found(trial) == expect("works")
        assert all("store.internal" in target for target in proxy.targets)
        assert proxy.num_requests >= (1 if scheme == "https" else len(store.seen))


@pytest.mark.parametrize("status", [403, 407])
def test_a_proxy_that_refuses(
    open_store: Callable[..., ImitatedStore],
    trial: Trial,
    authority: PrivateAuthority,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    store = open_store(context=authority.context())
    with ForwardProxy({"store.internal": store.port}, refuses=status) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint_at("store.internal"))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
        monkeypatch.setenv("https_proxy", proxy.endpoint)
        assert found(trial) == expect("UnreachableError")
        assert proxy.num_requests >= len(NAMES)


def test_a_proxy_that_wants_a_password_over_http(
    open_store: Callable[..., ImitatedStore], trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    with ForwardProxy({"store.internal": store.port}, refuses=407) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint_at("store.internal"))
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        assert found(trial) == expect("UnreachableError")


def test_a_proxy_or_a_server_that_is_not_there(
    open_store: Callable[..., ImitatedStore], trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert found(trial) == expect("UnreachableError")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.internal:9000")
    assert found(trial) == expect("UnreachableError")
    monkeypatch.setenv("AWS_ENDPOINT_URL", open_store().endpoint_at("store.internal"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert found(trial) == expect("UnreachableError")


def test_a_store_with_buckets_in_host_names(
    open_store: Callable[..., ImitatedStore], trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(addressing.virtual_host_only("store.internal"))
    with ForwardProxy({"store.internal": store.port}) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint_at("store.internal"))
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        profile(tmp_path, monkeypatch, "s3 =\n  addressing_style = path")
        assert found(trial) == expect("UnsupportedError")
        profile(tmp_path / "..", monkeypatch, "s3 =\n  addressing_style = virtual")
        assert found(trial) == expect("works")


def test_silence(open_store: Callable[..., ImitatedStore], trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", open_store(transfers.silent).endpoint)
    assert found(trial) == expect("UnreachableError")
