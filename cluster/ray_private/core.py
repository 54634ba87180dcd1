"""Private parts of Ray Core: authentication token, address file, console handlers, draining nodes."""

from __future__ import annotations

import logging
from collections.abc import Set
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


def token_header() -> dict[str, str]:
    """The header that sends the token to a cluster. Empty without a token.

    Raises:
        ray.exceptions.AuthenticationError: RAY_AUTH_MODE is "token" and no token is found.
    """
    return dict(_token_loader().get_token_for_http_header())


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
