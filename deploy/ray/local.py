"""``python -m deploy.ray.local``: replicas on this machine, and a Redis of their own if none is named."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM)
OBJECT_STORE_BYTES = 100 * 2**20
PROXY_START_SECONDS = 60
"""Ray gives its proxy 5 s to start three times over, which a busy machine does not keep."""

logger = logging.getLogger("deploy.ray.local")


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.local", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="to listen on, at 127.0.0.1 (8000)")
    parser.add_argument("--replicas", type=int, default=2, help="how many (2)")
    parser.add_argument("--most", type=int, help="replicas when there is much to do (as many as always)")
    parser.add_argument("--gpus", type=float, default=0, help="of each replica (0: it computes on the CPU)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _end_in_order()
    with tempfile.TemporaryDirectory(prefix="wc-", ignore_cleanup_errors=True) as folder:
        with _redis(Path(folder)) as redis_url, _cluster(Path(folder), arguments.port):
            _end_in_order()  # Ray has put handlers of its own
            _run(arguments, redis_url)
            logger.info("serving at http://%s:%d", LOOPBACK, arguments.port)
            threading.Event().wait()


def _end_in_order() -> None:
    """Let the first signal unwind everything that was started."""

    def end(*_: object) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit

    for number in SIGNALS:
        signal.signal(number, end)


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """Address of the Redis of the settings, or of one that lives as long as the block."""
    from app.settings import Settings

    environment: dict[str, Any] = {}
    if configured := Settings(**environment).redis_url:
        yield configured
        return
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("install redis-server, or set WORLDCACHE_REDIS_URL")
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    options = [
        "--port",
        str(port),
        "--bind",
        LOOPBACK,
        "--dir",
        str(folder),
        "--save",
        "",
        "--loglevel",
        "warning",
    ]
    process = subprocess.Popen([program, *options], start_new_session=True)  # a Ctrl-C is not for it
    try:
        yield f"redis://{LOOPBACK}:{port}/0"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _cluster(folder: Path, port: int) -> Iterator[None]:
    """A Ray of one machine that nobody else can reach, which ends with the block."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what makes Ray stay on loopback
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PROXY_START_SECONDS))
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 leaves replicas what others do not want
    import ray
    from ray import serve

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address=LOOPBACK,
        _temp_dir=str(folder),
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
        logging_level=logging.WARNING,
    )
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": LOOPBACK, "port": port})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def _run(arguments: argparse.Namespace, redis_url: str) -> None:
    """Start the replicas, and return once they serve."""
    from ray import serve

    from deploy.ray.application import build

    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0, "num_gpus": arguments.gpus},
        "max_ongoing_requests": 1000,
        "graceful_shutdown_timeout_s": 60,
    }
    if arguments.most is None:
        options["num_replicas"] = arguments.replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": arguments.replicas,
            "max_replicas": arguments.most,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 2,
            "downscale_delay_s": 10,
            "policy": {"policy_function": "deploy.ray.scaling:by_ongoing_work"},
        }
    settings = {"redis_url": redis_url}
    serve.run(build({"settings": settings, "options": options}), name="worldcache", route_prefix="/")


if __name__ == "__main__":
    main()
