"""Prometheus metrics. The registry is handed in, so that two apps in one process do not collide."""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worldcache.core import ChunkStats, RolloutStats
from worldcache.engine.engine import Tick

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)
DECIBELS = (20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0, 70.0, 80.0, 90.0, 100.0)


class Metrics:
    """Every metric of the service, and what to record when.

    Args:
        registry: to register with.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        by_policy = ("model", "policy")
        self.rollouts = Counter(
            "worldcache_rollouts_total",
            "Rollouts that ended, by how they ended.",
            (*by_policy, "status"),
            registry=registry,
        )
        self.rollout_latency = self._histogram(
            "worldcache_rollout_latency_seconds",
            "From submission to the last frame, queueing included; succeeded rollouts.",
            by_policy,
            SECONDS,
        )
        self.first_frame = self._histogram(
            "worldcache_first_frame_seconds",
            "From submission to the first decoded frame, queueing included.",
            by_policy,
            SECONDS,
        )
        self.queue_time = self._histogram(
            "worldcache_queue_seconds", "From submission until the rollout started.", ("model",), SECONDS
        )
        self.skip_ratio = self._histogram(
            "worldcache_skip_ratio",
            "Cached denoise steps over all denoise steps of a succeeded rollout.",
            by_policy,
            RATIOS,
        )
        self.denoise_steps = Counter(
            "worldcache_denoise_steps_total",
            "Denoise steps of finished chunks: computed (full) or predicted (cached).",
            (*by_policy, "kind"),
            registry=registry,
        )
        self.token_class_ratio = self._histogram(
            "worldcache_token_class_ratio",
            "Share of a modality's tokens in each class, once per chunk of a policy with classes.",
            ("model", "modality", "class"),
            RATIOS,
        )
        self.backbone_time = self._histogram(
            "worldcache_backbone_seconds", "Duration of one backbone call.", ("model",), CALL_SECONDS
        )
        self.tick_time = self._histogram(
            "worldcache_tick_seconds",
            "Duration of one tick of the engine: a backbone call and all that follows from it but decoding.",
            ("model",),
            CALL_SECONDS,
        )
        self.decode_time = self._histogram(
            "worldcache_decode_seconds",
            "Time that a rollout's chunks took to decode, beside the engine's ticks.",
            ("model",),
            CALL_SECONDS,
        )
        self.batch_size = self._histogram(
            "worldcache_batch_size", "Rows of one backbone call.", ("model",), BATCHES
        )
        self.frames = Counter("worldcache_frames_total", "Frames generated.", ("model",), registry=registry)
        self.queue_depth = Gauge(
            "worldcache_queue_depth", "Rollouts that wait for their turn.", ("model",), registry=registry
        )
        self.active_rollouts = Gauge(
            "worldcache_active_rollouts", "Rollouts being computed.", ("model",), registry=registry
        )
        self.active_sessions = Gauge(
            "worldcache_active_sessions", "Sessions that are open.", ("model",), registry=registry
        )
        self.action_to_frame = self._histogram(
            "worldcache_action_to_frame_seconds",
            "From the arrival of a session's step to its first decoded frame.",
            ("model",),
            SECONDS,
        )
        self.dropped_frames = Counter(
            "worldcache_dropped_frames_total",
            "Frames that a WebSocket did not get because its client read too slowly.",
            ("model",),
            registry=registry,
        )
        self.rejected = Counter(
            "worldcache_rejected_total",
            "Requests refused although well-formed, by the code of the error.",
            ("reason",),
            registry=registry,
        )
        self.audit_psnr = self._histogram(
            "worldcache_audit_psnr_db",
            "PSNR of RGB between a sampled rollout and the same one uncached; 100 if they are equal.",
            by_policy,
            DECIBELS,
        )
        self.audits = Counter(
            "worldcache_audits_total",
            "Audits by what became of them.",
            ("model", "result"),
            registry=registry,
        )
        self.policy_replaced = Counter(
            "worldcache_policy_replaced_total",
            "Presets replaced by a safer one because their audits fell below the floor.",
            ("model", "preset"),
            registry=registry,
        )
        self.model_ready = Gauge(
            "worldcache_model_ready", "1 if the model is warm.", ("model",), registry=registry
        )
        self.model_memory = Gauge(
            "worldcache_model_memory_bytes", "Bytes of the model's weights.", ("model",), registry=registry
        )
        self.device_memory = Gauge(
            "worldcache_device_memory_bytes",
            "What the process holds of a device's memory.",
            ("device",),
            registry=registry,
        )
        self.device_memory_total = Gauge(
            "worldcache_device_memory_total_bytes",
            "What a device has, or the process may use of it.",
            ("device",),
            registry=registry,
        )
        self.model_load_time = self._histogram(
            "worldcache_model_load_seconds", "Loading and warming of a model.", ("model",), SECONDS
        )
        self.model_load_failures = Counter(
            "worldcache_model_load_failures_total",
            "Models that could not be loaded.",
            ("model",),
            registry=registry,
        )
        self.model_evictions = Counter(
            "worldcache_model_evictions_total",
            "Models unloaded to make room for another.",
            ("model",),
            registry=registry,
        )
        self.redis_up = Gauge(
            "worldcache_redis_up",
            "1 while Redis can be used; 0 also if none is configured.",
            registry=registry,
        )
        self.work_backlog = Gauge(
            "worldcache_work_backlog",
            "Asynchronous rollouts in Redis that wait or run, of all servers.",
            registry=registry,
        )
        self.work_takeovers = Counter(
            "worldcache_work_takeovers_total",
            "Rollouts that this server went on with after another, or itself, had let go of them.",
            registry=registry,
        )
        self.work_parked = Counter(
            "worldcache_work_parked_total",
            "Rollouts that this server gave up because none of the tries finished another chunk.",
            registry=registry,
        )
        self.http_time = self._histogram(
            "worldcache_http_request_seconds",
            "Duration of HTTP requests, by the route's template.",
            ("method", "route", "status"),
            SECONDS,
        )

    def add_model(self, model: str) -> None:
        """Show a model from the start, not only after its first rollout or trouble."""
        for gauge in (
            self.queue_depth,
            self.active_rollouts,
            self.active_sessions,
            self.model_ready,
            self.model_memory,
        ):
            gauge.labels(model).set(0)
        for counter in (self.frames, self.dropped_frames, self.model_load_failures, self.model_evictions):
            counter.labels(model)

    def add_device(self, device: str, held: Callable[[], float], total: Callable[[], float]) -> None:
        """Show a device's memory; the functions give bytes and are called whenever metrics are read."""
        self.device_memory.labels(device).set_function(held)
        self.device_memory_total.labels(device).set_function(total)

    def ticked(self, tick: Tick) -> None:
        """Observer of the engine; may be called from any thread."""
        self.tick_time.labels(tick.model).observe(tick.seconds)
        for rows, seconds in tick.calls:
            self.backbone_time.labels(tick.model).observe(seconds)
            self.batch_size.labels(tick.model).observe(rows)

    def sessions_changed(self, model: str, change: int) -> None:
        self.active_sessions.labels(model).inc(change)

    def rollout_started(self, model: str, queue_seconds: float) -> None:
        self.queue_time.labels(model).observe(queue_seconds)

    def chunk_finished(self, model: str, policy: str, stats: ChunkStats, frames: int) -> None:
        self.frames.labels(model).inc(frames)
        self.denoise_steps.labels(model, policy, "full").inc(stats.steps_full)
        self.denoise_steps.labels(model, policy, "cached").inc(len(stats.decisions) - stats.steps_full)
        for modality, shares in (stats.token_classes or {}).items():
            for name, share in shares.items():
                if math.isfinite(share):
                    self.token_class_ratio.labels(model, modality, name).observe(share)

    def rollout_ended(self, model: str, status: str, stats: RolloutStats) -> None:
        self.rollouts.labels(model, stats.policy, status).inc()
        if stats.first_frame_seconds is not None:
            self.first_frame.labels(model, stats.policy).observe(stats.first_frame_seconds)
        if status == "succeeded":
            self.decode_time.labels(model).observe(stats.decode_seconds)
            self.rollout_latency.labels(model, stats.policy).observe(stats.latency_seconds)
            self.skip_ratio.labels(model, stats.policy).observe(stats.skip_ratio)

    def _histogram(
        self, name: str, help_text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, help_text, labels, registry=self.registry, buckets=buckets)
