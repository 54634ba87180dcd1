"""Private parts of Ray Core: authentication, address file, channels, console and signal handlers, draining nodes."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Set
from typing import Any


def console_handlers() -> list[logging.Handler]:
    """The handlers that print Ray Data's log messages on the console."""
    from ray._private.log import PlainRayHandler

    return [handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, PlainRayHandler)]


def local_address() -> str | None:
    """host:port of the Ray that runs on this machine, or None if none runs."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        address = canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return None
    return None if address is None else str(address)


def has_token() -> bool:
    """Whether Ray finds a token (RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token)."""
    return bool(_token_loader().has_token(ignore_auth_mode=True))


def sends_token() -> bool:
    """Whether Ray sends a token to a cluster, as RAY_AUTH_MODE and the token say.

    Raises:
        ray.exceptions.AuthenticationError: RAY_AUTH_MODE is "token" and no token is found.
    """
    return bool(_token_loader().get_token_for_http_header())


def grpc_channel(host_and_port: str) -> Any:
    """A grpc.Channel that Ray itself would open: with its token, its certificates and its rules for proxies.

    Ray's channels ignore http_proxy, https_proxy and grpc_proxy unless RAY_grpc_enable_http_proxy is set.

    Raises:
        RuntimeError: RAY_USE_TLS is set, and RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY or RAY_TLS_CA_CERT is not.
        OSError: the files of these certificates cannot be read.
    """
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS

    return init_grpc_channel(host_and_port, options=GLOBAL_GRPC_OPTIONS)


@contextlib.contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Let the job, not Ray, handle SIGTERM in the `with` block and after it.

    Ray's handlers would kill Ray's processes and exit with status 1 or 15 before the job can clean up. Those of
    ray.init are not set at all, because it takes seconds; the one of Ray's C++ part, which prints a stack and dies, is
    replaced at the end of the block.
    """
    from ray._private import utils

    handler = signal.getsignal(signal.SIGTERM)
    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def reload_settings() -> None:
    """Make Ray reread its environment variables (RAY_AUTH_MODE), which it otherwise reads only on import."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def hide_worker_lines(text: str) -> None:
    """Do not print the lines of worker processes that contain `text`; the log files of the session keep them."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    def remove(batch: dict[str, Any]) -> None:
        batch["lines"] = [line for line in batch["lines"] if text not in line]

    name = f"hide {text}"
    if all(other != name for other, _ in dispatcher.handlers):
        dispatcher.handlers.insert(0, (name, remove))  # before the handler that prints


def draining_nodes() -> Set[str]:
    """Ids of the nodes that are being drained. They stop soon, so no new work should start on them."""
    import ray

    return ray._private.state.state.get_draining_nodes().keys()


def _token_loader() -> Any:
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    return AuthenticationTokenLoader.instance()
