"""The service's settings, from arguments or from environment variables named ``WORLDCACHE_<SETTING>``.

Nothing else in ``app`` and ``worldcache`` reads the environment.
"""

from __future__ import annotations

import ipaddress
import math
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worldcache.errors import InvalidInput


class Settings(BaseSettings):
    """Every setting of the service; lists are separated by commas in the environment."""

    model_config = SettingsConfigDict(env_prefix="WORLDCACHE_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    insecure: bool = Field(
        False, description="Allow an address that other machines can reach although no API keys are set."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Keys that clients may present as `Authorization: Bearer KEY`; none: no key is needed.",
    )
    api_keys_file: str = Field(
        "",
        description="TOML file with further keys, their limits and models; it is read again when it changes.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose pages may use the API, such as https://example.org."
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port for /metrics alone; 0 leaves it on the API's port."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that the port for metrics listens on.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe messages that are logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines for people, or one JSON object a line for machines."
    )

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("doom",),
        min_length=1,
        description="Models to serve: NAME of a family for its own weights, NAME=FAMILY:WEIGHTS for a folder "
        "or a hub id in a family's layout, or FAMILY:WEIGHTS, named as those are. A family is one that comes "
        "with the library or the import path of a class.",
    )
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        ("all",),
        description="Names of the models to load at the start, or all, or none; the others are loaded when "
        "they are first asked for.",
    )
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        ("cpu",),
        min_length=1,
        description="Where torch may put models, for example cpu or cuda:0,cuda:1; each has an engine.",
    )
    placement: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Devices of single models, as NAME=DEVICE; the others go where the fewest bytes of "
        "weights are.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Number format of the weights and of the backbone's arithmetic."
    )
    dtypes: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Number formats of single models, as NAME=FORMAT."
    )
    compile: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of the models whose backbone goes through torch.compile."
    )
    cuda_graphs: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of the models whose backbone runs as CUDA graphs; they need a CUDA device."
    )
    offload: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of the models that keep on the host what is not in use, such as encoders."
    )
    otlp_endpoint: str = Field(
        "",
        description="URL of an OpenTelemetry collector that takes traces over HTTP, such as "
        "http://127.0.0.1:4318/v1/traces; none if empty.",
    )
    model_memory_bytes: int = Field(
        0,
        ge=0,
        description="Most bytes of weights on one device; the model idle for longest is unloaded for a new "
        "one. 0 is no limit.",
    )
    model_wait_seconds: float = Field(
        60.0, ge=0, description="How long a request waits for its model to be loaded."
    )

    max_batch: int = Field(8, ge=2, description="Most backbone rows in one call; a guided rollout needs two.")
    max_active: int = Field(
        16,
        ge=1,
        description="Most rollouts that are computed at the same time; an urgent one does not wait for those "
        "that are less so.",
    )
    rollout_memory_bytes: int = Field(
        0,
        ge=0,
        description="Most device memory of all rollouts that are computed at the same time, models apart; "
        "0 for no limit.",
    )
    max_queue: int = Field(
        64, ge=0, description="Most rollouts that wait for their turn; further ones are refused with 503."
    )
    max_per_client: int = Field(
        64, ge=1, description="Most rollouts of one client, waiting or running; further ones get 429."
    )
    deadline_min_full_steps: int = Field(
        4, ge=1, description="Fewest computed steps a chunk that a deadline may be met with."
    )
    deadline_margin: float = Field(
        0.15, ge=0, lt=1, description="Share of a deadline that is kept back for what cannot be foreseen."
    )
    retry_after_seconds: int = Field(
        1,
        ge=0,
        description="Least that Retry-After tells a client which was refused; more if more is expected.",
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="How long running rollouts may go on after the server was told to stop."
    )

    max_frames: int = Field(256, ge=1, description="Most frames, that is actions, of one rollout.")
    max_inference_steps: int = Field(
        200, ge=1, description="Most denoise steps per chunk, if the model does not allow fewer."
    )
    max_guidance_scale: float = Field(20.0, ge=1, description="Largest guidance scale of a request.")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body.")
    body_seconds: float = Field(
        30.0,
        gt=0,
        description="How long a body may take to arrive, and a second more for every 16 KiB of it.",
    )
    header_seconds: float = Field(
        10.0, gt=0, description="How long the headers of a request may take to arrive."
    )
    stall_seconds: float = Field(
        60.0, gt=0, description="After how long a client is disconnected that hardly reads its answer."
    )
    max_connections: int = Field(
        4096, ge=1, description="Most open connections; those that wait for a request make room for new ones."
    )
    max_image_bytes: int = Field(8 * 2**20, ge=1, description="Largest image of an observation, encoded.")
    max_image_pixels: int = Field(
        16 * 2**20, ge=1, description="Most pixels of an observation's image, checked before it is decoded."
    )
    stream_keepalive_seconds: float = Field(
        15.0, gt=0, description="Silence after which an event stream sends a comment, so that it stays open."
    )

    session_ttl_seconds: float = Field(
        600.0, gt=0, description="How long a session is kept that nobody uses."
    )
    max_sessions: int = Field(128, ge=1, description="Most open sessions; further ones are refused with 503.")
    max_sessions_per_client: int = Field(
        32, ge=1, description="Most open sessions of one client; further ones get 429."
    )
    session_history_steps: int = Field(
        32, ge=1, description="Latest steps of a session that it can be rewound to."
    )
    session_max_frames: int = Field(
        100_000, ge=1, description="Most frames of one session; its actions are kept for its snapshots."
    )
    session_snapshot_seconds: float = Field(
        2.0, gt=0, description="Time between two snapshots of a session that changes, if there is a Redis."
    )
    session_free_run_seconds: float = Field(
        60.0, gt=0, description="Silence of a client after which its freely running world is paused."
    )
    session_outbox_frames: int = Field(
        64, ge=1, description="Most frames that wait for a slow WebSocket; the oldest is dropped first."
    )
    plan_max_candidates: int = Field(32, ge=1, description="Most sequences of actions in one plan.")
    plan_max_frames: int = Field(2048, ge=1, description="Most frames of all sequences of a plan together.")

    video_min_height: int = Field(
        240,
        ge=1,
        description="Videos of smaller frames are enlarged by a whole factor to this height.",
    )
    store_max_rollouts: int = Field(
        1000, ge=1, description="Most finished rollouts that are kept; the oldest is dropped first."
    )
    store_max_bytes: int = Field(
        2**30, ge=1, description="Most bytes of artifacts that are kept; the oldest rollout is dropped first."
    )
    store_ttl_seconds: float = Field(
        3600.0, gt=0, description="How long a finished rollout and its idempotency key are kept."
    )

    artifact_dir: str = Field(
        "",
        description="Folder for the frames and videos of rollouts, shared by all servers of one Redis; none: "
        "in Redis, or in memory without one.",
    )

    redis_url: str = Field(
        "",
        repr=False,
        description="Address of a Redis server, as redis://[:PASSWORD@]HOST:PORT/DATABASE (rediss:// for "
        "TLS), which keeps rollouts and asynchronous work; none: in memory.",
    )
    redis_prefix: str = Field(
        "worldcache:",
        min_length=1,
        description="What every key in Redis begins with; servers that share it share their rollouts.",
    )
    lease_seconds: float = Field(
        10.0,
        ge=1,
        description="Silence of a server after which another takes over the asynchronous rollouts that it "
        "ran.",
    )
    work_tries: int = Field(
        5,
        ge=1,
        description="How often an asynchronous rollout is begun without finishing another chunk before it is "
        "parked.",
    )
    work_max_queue: int = Field(
        1000,
        ge=1,
        description="Most asynchronous rollouts in Redis that have not ended; further ones are refused with "
        "503.",
    )

    audit_share: float = Field(
        0.0, ge=0, le=1, description="Share of finished rollouts that are run again uncached and compared."
    )
    audit_floors: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Entries MODEL=DB, for example doom=45: a preset whose audits fall below is replaced.",
    )
    audit_window: int = Field(
        20, ge=1, description="How many of the latest audits of a model and preset are averaged."
    )
    audit_min_samples: int = Field(
        5, ge=1, description="Fewest audits of a model and preset before the floor is applied."
    )

    @field_validator(
        "api_keys",
        "cors_origins",
        "models",
        "preload",
        "devices",
        "placement",
        "dtypes",
        "compile",
        "cuda_graphs",
        "offload",
        "audit_floors",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _usable(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if not text or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError("an API key must be printable ASCII without spaces")
        return keys

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}".lower():
                raise ValueError(
                    "an origin is a scheme and a host, in lower case, such as https://example.org"
                )
        return origins

    @field_validator("audit_floors")
    @classmethod
    def _floors(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            _floor(entry)
        if len(dict(map(_floor, entries))) < len(entries):
            raise ValueError("a model has two floors; give it one")
        return entries

    @model_validator(mode="after")
    def _enough_audits(self) -> Settings:
        if self.audit_min_samples > self.audit_window:
            raise ValueError("audit_min_samples must not be more than audit_window")
        return self

    @property
    def audit_floor_by_model(self) -> dict[str, float]:
        """The floors of ``audit_floors`` in dB, by model."""
        return dict(map(_floor, self.audit_floors))


def _floor(entry: str) -> tuple[str, float]:
    """The model and the decibels of ``MODEL=DB``."""
    model, _, text = entry.rpartition("=")
    try:
        decibels = float(text)
    except ValueError:
        decibels = math.nan
    if not model or not math.isfinite(decibels):
        raise ValueError(f"{entry!r} must be MODEL=DB, for example doom=45")
    return model.strip(), decibels


def is_loopback(host: str) -> bool:
    """True if only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_binding(settings: Settings) -> None:
    """Refuse to listen to other machines without API keys.

    Raises:
        InvalidInput: the address is not loopback, there are no keys, and ``insecure`` is off.
    """
    if settings.api_keys or settings.api_keys_file or settings.insecure or is_loopback(settings.host):
        return
    raise InvalidInput(
        f"{settings.host} can be reached by other machines and no API keys are set; set "
        "WORLDCACHE_API_KEYS or WORLDCACHE_API_KEYS_FILE, listen on 127.0.0.1, or allow it with "
        "WORLDCACHE_INSECURE=true",
        param="host",
    )
