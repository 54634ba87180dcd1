"""Connect a job to Ray: a local Ray on this machine, or a cluster at an address.

This module works around four surprises of Ray 2.60:

- Authentication logs a warning on every local start, and retries a wrong token for 20 seconds before it reports "failed
  to connect". Local Rays run without authentication, and addresses are probed first with the token that Ray would send.
- Actor pools that reserve every CPU block the tasks that read their input. `preflight` refuses such pools.
- Ray Data splits, merges and skips blocks. `configure_data` makes a block exactly what a task returned, and makes every
  error fail the job.
- The actors of a failed execution keep their CPUs. `KillOnError` kills them.
"""

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster import storage
from cluster.resources import GIB, Pool

PROBE_TIMEOUT_SECONDS = 5.0

_HARMLESS = "has constructor arguments in the object store and max_restarts > 0"
"""Part of a message that Ray prints about its own actors, such as PreemptionWatcher. No user can act on it."""

_PACKAGES = ("cluster", "jobs", "pipeline")

_NO_PHONING_HOME = {"RAY_USAGE_STATS_ENABLED": "0", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "offline"}
"""Environment variables that stop Ray, albumentations (used by img2dataset) and wandb from contacting their vendors."""

_UNITS = {"CPU": 1, "GPU": 1, "memory": GIB}
"""Ray's own resources, and how much of each is one unit in messages. Other names are custom resources."""

_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable in which Ray tells the entry point of a submitted job its runtime environment."""


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """The Ray that a job runs on."""

    address: str | None = None
    """host:port of a cluster, ray://host:port, "auto" (the Ray that runs on this machine) or "local" (a new Ray for
    this process). Unset: the variable RAY_ADDRESS, which `ray job submit` sets, else "local"."""
    num_cpus: int | None = None
    """Logical CPUs of a local Ray. Unset: the CPUs of this machine, but at least 4, so that small pools leave some for
    reading."""
    object_store_gib: float | None = None
    """Size of a local Ray's object store in shared memory, in GiB. Unset: Ray's default, 30% of the memory."""

    def __post_init__(self) -> None:
        for name in ("num_cpus", "object_store_gib"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"session.{name} = {value}: must be positive")


@contextlib.contextmanager
def session(config: SessionConfig, *, needs: Sequence[Pool] = ()) -> Iterator[None]:
    """Connect to Ray, check that the cluster can hold the pools, and disconnect at the end of the `with` block.

    If this process is already connected and the configuration sets no address, that connection is used and left open.

    Raises ValueError within seconds if no Ray answers at the address, if the token is missing or wrong, or if the
    cluster cannot hold the pools.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_NO_PHONING_HOME))
        import ray  # slow, and reads the variables set above

        if config.address is not None or not ray.is_initialized():
            address = config.address or os.environ.get("RAY_ADDRESS") or "local"
            if address == "local":
                _start(config)
            else:
                _connect(address, stack)
            stack.callback(_disconnect)
        configure_data()
        preflight(needs)
        yield


def configure_data() -> None:
    """Configure Ray Data in this process. Tasks inherit the settings of the process that created their dataset."""
    from ray.data import DataContext

    from cluster.pacing import SchedulerPause
    from cluster.ray_private.core import console_handlers, hide_worker_lines
    from cluster.ray_private.data import PROGRESS_LOGGER, KillOnError

    context = DataContext.get_current()
    context.target_max_block_size = None  # no splitting: one block is one part
    context.max_errored_blocks = 0  # a failed block fails the job; bad rows are data
    context.raise_original_map_exception = True
    context.custom_execution_callback_classes = [SchedulerPause, KillOnError]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger(PROGRESS_LOGGER).setLevel(logging.ERROR)  # it warns that progress bars are disabled
    hide_worker_lines(_HARMLESS)
    for handler in console_handlers():  # the log files of the Ray session still receive all messages
        handler.addFilter(_is_warning)


def preflight(needs: Sequence[Pool]) -> None:
    """Check that the cluster can hold all pools at once and has CPUs left to read their input.

    Nodes that the autoscaler may add are counted. Raises ValueError with the required and available amounts.
    """
    if not needs:
        return
    capacity = _capacity()
    for resource, required in _sum_of(needs).items():
        available = capacity.get(resource, 0.0)
        if required > available:
            advice = "reduce the size of the pools or the resources per actor, or add nodes"
            if resource not in _UNITS:
                names = sorted(name for name, amount in capacity.items() if amount and _is_custom(name))
                advice = f"correct the name (custom resources of the cluster: {', '.join(names) or 'none'}), {advice}"
            raise ValueError(
                f"the actor pools need {_amount(resource, required)} and the cluster has "
                f"{available / _UNITS.get(resource, 1):g}: {advice}"
            )
        if resource == "CPU" and required == available:
            raise ValueError(
                f"the actor pools would take all {available:g} CPUs of the cluster and leave none to read their input: "
                "reduce the size or the cpus of the pools, add CPU nodes, or raise session.num_cpus of a local Ray"
            )
    nodes = _node_resources()
    for pool in needs:
        actor = {"CPU": pool.cpus, "GPU": pool.gpus} | dict(pool.resources)
        if not any(all(node.get(name, 0) >= amount for name, amount in actor.items()) for node in nodes):
            *others, last = (_amount(name, amount) for name, amount in actor.items())
            most = ", ".join(_amount(name, max(node.get(name, 0) for node in nodes)) for name in actor)
            raise ValueError(
                f"an actor with {', '.join(others)} and {last} fits on no node of the cluster; nodes have at most "
                f"{most}: reduce the resources per actor, or add larger nodes"
            )


def _sum_of(needs: Sequence[Pool]) -> dict[str, float]:
    """The amount of each resource that the smallest size of all pools takes."""
    total: Counter[str] = Counter()
    for pool in needs:
        actor = {"CPU": pool.cpus, "GPU": pool.gpus, "memory": pool.memory_gib * GIB} | dict(pool.resources)
        for resource, amount in actor.items():
            total[resource] += pool.min_size * amount  # type: ignore[assignment]
    return dict(total)


def _amount(resource: str, amount: float) -> str:
    """An amount with its unit, such as "2 CPUs", "0.5 GiB of memory" or "1 of the resource 'crawl'"."""
    unit = "GiB of memory" if resource == "memory" else f"{resource}s"
    return f"{amount / _UNITS[resource]:g} {unit}" if resource in _UNITS else f"{amount:g} of the resource '{resource}'"


def _is_custom(resource: str) -> bool:
    return resource not in (*_UNITS, "object_store_memory") and not resource.startswith(("node:", "accelerator_type:"))


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING  # errors are raised as well; users need no messages below warnings


def _capacity() -> dict[str, float]:
    """Resources of the whole cluster, including nodes that the autoscaler may add."""
    import ray

    current: dict[str, float] = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    potential: Counter[str] = Counter()
    for node_type in _launchable_node_types():
        for resource, amount in node_type["resources"].items():
            potential[resource] += amount * node_type.get("max_workers", 0)
    return current | {resource: max(amount, current.get(resource, 0.0)) for resource, amount in potential.items()}


def _node_resources() -> list[dict[str, float]]:
    """Resources of each running node, and of each node type that the autoscaler may add."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    launchable = [dict(kind["resources"]) for kind in _launchable_node_types() if kind.get("max_workers", 0)]
    return [dict(node["Resources"]) for node in nodes if node["Alive"]] + launchable


def _launchable_node_types() -> list[dict[str, Any]]:
    """The node types that the autoscaler may add, read from the file that Ray's launcher writes on the head."""
    file = Path("~/ray_bootstrap_config.yaml").expanduser()
    return list(yaml.safe_load(file.read_text())["available_node_types"].values()) if file.exists() else []


def _start(config: SessionConfig) -> None:
    import ray

    from cluster.ray_private.core import keep_sigterm_handler

    with contextlib.ExitStack() as stack:
        if "RAY_AUTH_MODE" not in os.environ:
            stack.enter_context(_authentication("disabled"))  # a local Ray accepts connections from this machine only
        stack.enter_context(keep_sigterm_handler())
        ray.init(
            address="local",
            num_cpus=config.num_cpus or max(4, len(os.sched_getaffinity(0))),
            object_store_memory=None if config.object_store_gib is None else int(config.object_store_gib * GIB),
            include_dashboard=False,
            logging_level=logging.WARNING,
        )


def _disconnect() -> None:
    import ray

    from cluster.ray_private.core import keep_sigterm_handler

    with keep_sigterm_handler():
        ray.shutdown()


def _connect(address: str, stack: contextlib.ExitStack) -> None:
    import ray

    from cluster.ray_private.core import has_token, keep_sigterm_handler

    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"session.address = '{address}' is the address of a dashboard: submit the job with "
            f"`ray job submit --address {address} --working-dir . -- python -m jobs.NAME ...`, "
            "or set the cluster's host:port (by default port 6379)"
        )
    if "RAY_AUTH_MODE" not in os.environ and has_token():
        stack.enter_context(_authentication("token"))  # Ray enables its token by itself only for "auto"
    _probe(_host_and_port(address), address)
    try:
        with keep_sigterm_handler():
            ray.init(address=address, runtime_env=_runtime_environment(), logging_level=logging.WARNING)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise ValueError(f"session.address = '{address}': {error}") from error


def _host_and_port(address: str) -> str:
    from cluster.ray_private.core import local_address

    if address != "auto":
        return address.removeprefix("ray://")
    host_and_port = local_address()
    if host_and_port is None:
        raise ValueError(
            "session.address = 'auto': no Ray runs on this machine; start one with `ray start --head`, set host:port "
            "of another cluster, or omit the option to start a local Ray"
        )
    return host_and_port


def _probe(host_and_port: str, address: str) -> None:
    """Ask the head whether it is alive, and raise a clear error within seconds if connecting would fail."""
    import grpc
    from ray.exceptions import AuthenticationError

    from cluster.ray_private.core import grpc_channel, sends_token

    client = address.startswith("ray://")
    try:
        token = sends_token()
        connecting = grpc_channel(host_and_port)
    except AuthenticationError as error:  # RAY_AUTH_MODE=token and no token
        raise ValueError(_token_error(address, "is missing")) from error
    except (RuntimeError, OSError) as error:  # RAY_USE_TLS=1 without certificates
        raise ValueError(f"session.address = '{address}': RAY_USE_TLS is set, but {error}") from error
    with connecting as channel:
        call = channel.unary_unary(f"/ray.rpc.{'RayletDriver/KVExists' if client else 'NodeInfoGcsService/CheckAlive'}")
        try:
            call(b"", timeout=PROBE_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            if client and error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                return  # alive: it refuses only the missing client id
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ValueError(_token_error(address, "is refused" if token else "is missing")) from error
            raise ValueError(
                f"session.address = '{address}': no Ray answers at this address ({error.details()}); start the "
                "cluster, correct the address, or omit it to start a local Ray"
            ) from error


def _token_error(address: str, problem: str) -> str:
    return (
        f"session.address = '{address}': the cluster requires a token, and the token of this job {problem}; run "
        "`ray get-auth-token` on the head and put the token into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )


def is_submitted() -> bool:
    """Whether `ray job submit` started this process, in Ray's copy of a working directory on a node of the cluster."""
    return _SUBMITTED in os.environ


def _runtime_environment() -> dict[str, Any]:
    """The runtime environment that workers need. `ray job submit` already sends the code as the working directory."""
    submitted = json.loads(os.environ.get(_SUBMITTED, "{}")).get("runtime_env", {})
    variables = _NO_PHONING_HOME | storage.location()
    submitted_variables = submitted.get("env_vars", {})
    missing = {name: value for name, value in variables.items() if name not in submitted_variables}
    environment: dict[str, Any] = {"env_vars": missing}
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
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set those variables that the user has not set, for this process and its children, and unset them afterwards."""
    added = [name for name in variables if name not in os.environ]
    os.environ.update((name, variables[name]) for name in added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
