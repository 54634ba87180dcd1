"""A connection to Ray for the length of a job: a Ray of its own on this machine, or a cluster at an address.

Ray 2.60 makes three things a surprise, and they are settled here. Its authentication warns on every local start and,
on a cluster with tokens, retries a wrong one for 20 seconds before it says "failed to connect": a local Ray runs
without, and an address is probed first, with the token that Ray itself would send. An actor pool that holds every CPU
hangs the readers that should feed it: `preflight` refuses it. Ray Data splits, merges and skips blocks as it sees
fit: its context is set so that a block is what a task returned, and an error is an error.
"""

import contextlib
import json
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.resources import GIB, Pool

PROBE_TIMEOUT_SECONDS = 5.0

_PACKAGES = ("cluster", "jobs", "pipeline")

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "offline"}
"""What keeps Ray, img2dataset's albumentations and wandb from phoning home, in every process."""

_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Where the storage is, but never its credentials: the nodes of a cluster have their own."""


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Which Ray a job runs on."""

    address: str | None = None
    """host:port of a cluster, ray://host:port, "auto" (the one started on this machine) or "local" (a Ray of this
    process). Unset: the variable RAY_ADDRESS, which `ray job submit` sets, else "local"."""
    num_cpus: int | None = None
    """Logical CPUs of a local Ray; unset: those of this machine, but at least 4, so that a small pool leaves some for
    reading."""
    object_store_gib: float | None = None
    """Shared memory of a local Ray's object store in GiB; unset: Ray's 30% of the memory."""

    def __post_init__(self) -> None:
        for name in ("num_cpus", "object_store_gib"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"session.{name} = {value}: must be positive")


@contextlib.contextmanager
def session(config: SessionConfig, *, needs: Sequence[Pool] = ()) -> Iterator[None]:
    """Connects to Ray, checks that it can hold the pools, and shuts down on leaving what it started.

    Where this process is connected already and no address is asked for, that connection is used and left open.

    Raises ValueError for an address where no Ray answers or whose token is missing or wrong, and for pools that the
    cluster cannot hold, within seconds.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_QUIET))
        import ray  # here and not above: it takes seconds, and reads its variables when it is imported

        if config.address is not None or not ray.is_initialized():
            address = config.address or os.environ.get("RAY_ADDRESS") or "local"
            if address == "local":
                _start(config)
            else:
                _connect(address, stack)
            stack.callback(ray.shutdown)
        configure_data()
        preflight(needs)
        yield


def configure_data() -> None:
    """Sets Ray Data up in this process; tasks take it over from the process that made their dataset."""
    from ray.data import DataContext

    from cluster.pacing import Rest
    from cluster.ray_private.core import console_handlers
    from cluster.ray_private.data import PROGRESS_LOGGER

    context = DataContext.get_current()
    context.target_max_block_size = None  # no splitting: a block is a part
    context.max_errored_blocks = 0  # no skipping: bad rows are data, a failed block is a failure
    context.raise_original_map_exception = True
    context.custom_execution_callback_classes = [Rest]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger(PROGRESS_LOGGER).setLevel(logging.ERROR)  # it warns that there is no progress bar
    for handler in console_handlers():  # the log files of the Ray session keep everything
        handler.addFilter(_is_warning)


def preflight(needs: Sequence[Pool]) -> None:
    """Checks that the cluster, grown as far as its autoscaler may, holds these pools at once and can feed them.

    Raises ValueError that says what is missing, with the numbers.
    """
    if not needs:
        return
    has = _capacity()
    for resource, wanted, unit in (
        ("CPU", sum(pool.min_size * pool.cpus for pool in needs), 1),
        ("GPU", sum(pool.min_size * pool.gpus for pool in needs), 1),
        ("memory", sum(pool.min_size * pool.memory_gib for pool in needs), GIB),
    ):
        available = has.get(resource, 0.0) / unit
        name = "GiB of memory" if resource == "memory" else f"{resource}s"
        if wanted > available:
            raise ValueError(
                f"the actor pools need {wanted:g} {name} and the cluster has {available:g}: "
                "lower the pools' size or what each actor holds, or add nodes"
            )
        if resource == "CPU" and wanted == available:
            raise ValueError(
                f"the actor pools would hold all {available:g} CPUs of the cluster and leave none to read for them: "
                "lower the pools' size or cpus, add CPU nodes, or for a local Ray raise session.num_cpus"
            )
    kinds = _kinds_of_nodes()
    for pool in needs:
        if not any(kind.get("CPU", 0) >= pool.cpus and kind.get("GPU", 0) >= pool.gpus for kind in kinds):
            most = ", ".join(f"{max(kind.get(name, 0) for kind in kinds):g} {name}s" for name in ("CPU", "GPU"))
            raise ValueError(
                f"an actor that holds {pool.cpus:g} CPUs and {pool.gpus:g} GPUs fits on no node of the cluster, which "
                f"have at most {most}: lower what each actor holds, or add larger nodes"
            )


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING  # what is more is raised as well, what is less is Ray's own business


def _capacity() -> dict[str, float]:
    """What the nodes have, or may have."""
    import ray

    has: dict[str, float] = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    may_have: Counter[str] = Counter()
    for kind in _launched_kinds():
        for resource, amount in kind["resources"].items():
            may_have[resource] += amount * kind.get("max_workers", 0)
    return has | {resource: max(amount, has.get(resource, 0.0)) for resource, amount in may_have.items()}


def _kinds_of_nodes() -> list[dict[str, float]]:
    """What each node has, or may have."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    launched = [dict(kind["resources"]) for kind in _launched_kinds() if kind.get("max_workers", 0)]
    return [dict(node["Resources"]) for node in nodes if node["Alive"]] + launched


def _launched_kinds() -> list[dict[str, Any]]:
    """The kinds of nodes that there may be: Ray's launcher leaves its configuration on the head, where jobs run."""
    launched = Path("~/ray_bootstrap_config.yaml").expanduser()
    return list(yaml.safe_load(launched.read_text())["available_node_types"].values()) if launched.exists() else []


def _start(config: SessionConfig) -> None:
    import ray

    with contextlib.ExitStack() as stack:
        if "RAY_AUTH_MODE" not in os.environ:
            stack.enter_context(_authentication("disabled"))  # this Ray listens to this machine's processes only
        stack.enter_context(_sigterm_handler_kept())
        ray.init(
            address="local",
            num_cpus=config.num_cpus or max(4, len(os.sched_getaffinity(0))),
            object_store_memory=None if config.object_store_gib is None else int(config.object_store_gib * GIB),
            include_dashboard=False,
            logging_level=logging.WARNING,
        )


def _connect(address: str, stack: contextlib.ExitStack) -> None:
    import ray

    from cluster.ray_private.core import has_token

    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"session.address = '{address}' is a dashboard's: start the job there with "
            f"`ray job submit --address {address} --working-dir . -- python -m jobs.NAME ...`, "
            "or give the cluster's host:port (6379 unless chosen otherwise)"
        )
    if "RAY_AUTH_MODE" not in os.environ and has_token():
        stack.enter_context(_authentication("token"))  # Ray does so for "auto" only
    _probe(_host_and_port(address), address)
    try:
        with _sigterm_handler_kept():
            ray.init(address=address, runtime_env=_runtime_environment(), logging_level=logging.WARNING)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise ValueError(f"session.address = '{address}': {error}") from error


def _host_and_port(address: str) -> str:
    from cluster.ray_private.core import local_address

    if address != "auto":
        return address.removeprefix("ray://")
    found = local_address()
    if found is None:
        raise ValueError(
            "session.address = 'auto': no Ray runs on this machine; `ray start --head` starts one, "
            "host:port names one elsewhere, and without the option the job starts its own"
        )
    return found


def _probe(host_and_port: str, address: str) -> None:
    """Asks the head whether it is alive, as Ray will, but says within seconds why it would fail."""
    import grpc
    from ray.exceptions import AuthenticationError

    from cluster.ray_private.core import token_header

    try:
        token = token_header()
    except AuthenticationError as error:  # RAY_AUTH_MODE=token and no token
        raise ValueError(_no_entry(address, "is missing")) from error
    client = address.startswith("ray://")
    with grpc.insecure_channel(host_and_port) as channel:
        ask = channel.unary_unary(f"/ray.rpc.{'RayletDriver/KVExists' if client else 'NodeInfoGcsService/CheckAlive'}")
        try:
            ask(b"", timeout=PROBE_TIMEOUT_SECONDS, metadata=tuple(token.items()))
        except grpc.RpcError as error:
            if client and error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                return  # alive, but we have not introduced ourselves
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ValueError(_no_entry(address, "is refused" if token else "is missing")) from error
            raise ValueError(
                f"session.address = '{address}': no Ray answers there ({error.details()}); start the cluster, correct "
                "the address, or leave it out for a Ray of this process"
            ) from error


def _no_entry(address: str, what: str) -> str:
    return (
        f"session.address = '{address}': the cluster demands its token, and ours {what}; put the token of the head "
        "(`ray get-auth-token` there) into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )


def _runtime_environment() -> dict[str, Any]:
    """What the workers of a cluster need from here; `ray job submit` has brought the code as the working directory."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {})
    variables = _QUIET | {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    given = submitted.get("env_vars", {})
    environment: dict[str, Any] = {"env_vars": {name: variables[name] for name in variables if name not in given}}
    if "working_dir" not in submitted:
        root = Path(__file__).resolve().parents[1]
        environment["py_modules"] = [str(root / package) for package in _PACKAGES]
    return environment


@contextlib.contextmanager
def _authentication(mode: str) -> Iterator[None]:
    from cluster.ray_private.core import reload_settings

    with _environment({"RAY_AUTH_MODE": mode}):
        reload_settings()
        yield
    reload_settings()


@contextlib.contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Ray's handler kills its processes and leaves with status 1 or 15, before the job's can clean up."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets what the user has not set, for this process and those it starts, and takes it back."""
    added = [name for name in variables if name not in os.environ]
    os.environ.update((name, variables[name]) for name in added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
