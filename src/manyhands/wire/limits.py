"""What a connection may cost, and how gRPC is told: the one place with channel options.

It knows numbers and gRPC's names for them, nothing of peers or messages. Each option that is not obvious
says which trap it closes.
"""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.settings import load

PROTOCOL = 1
"""The version of everything that travels; both sides must have the same one."""

STREAM, ASK, HELLO = "/manyhands/stream", "/manyhands/ask", "/manyhands/hello"
VERSION_KEY, PLAIN_KEY, PLAIN_ROLE, MEMORY_KEY = "mh-version", "mh-key", "mh-role", "mh-memory"

Options = list[tuple[str, int | str]]

_MIN_PING_MS = 200
_MOST_FRAME_BYTES = 16 * 1024 * 1024 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one listener or dialer; sizes in bytes, times in seconds."""

    message_bytes: int = 6 * 1024 * 1024
    outbox_bytes: int = 16 * 1024 * 1024
    question_bytes: int = 64 * 1024
    metadata_bytes: int = 8 * 1024
    streams_per_connection: int = 32
    calls: int = 4096
    connections: int = 4096
    handshake_seconds: float = 5.0
    idle_seconds: float = 30.0
    timeout_seconds: float = 30.0
    heartbeat_seconds: float = 10.0
    shares_memory: bool = True
    """Whether neighbours on one machine may pass messages through its memory (wire/shared.py)."""

    @classmethod
    def configured(cls) -> Limits:
        """The usual bounds, with the times that the settings say."""
        settings = load()
        return cls(
            timeout_seconds=settings.network.timeout,
            heartbeat_seconds=settings.network.heartbeat,
            shares_memory=settings.advanced.shared_memory,
        )


def server_options(limits: Limits) -> Options:
    """The options of a listener."""
    return [
        *_common(limits),
        ("grpc.so_reuseport", 0),  # else a second server shares the port, and half of the nodes, silently
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_seconds)),  # 120 s by default
        ("grpc.max_connection_idle_ms", _milliseconds(limits.idle_seconds)),  # a connection without a call
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        # Not what this side does: a peer's heartbeat is its own, and one that pings too often is cut off.
        ("grpc.http2.min_ping_interval_without_data_ms", min(_MIN_PING_MS, _keepalive_ms(limits) // 2)),
    ]


def client_options(limits: Limits) -> Options:
    """The options of a dialer, address and proxy apart."""
    return [
        *_common(limits),
        # Without a pool of its own a channel shares sockets and waiting times with strangers in this process.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),  # a retry would keep a copy of what was sent
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5000),  # despite its name also the time a handshake may take
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _common(limits: Limits) -> Options:
    keepalive_ms = _keepalive_ms(limits)
    patience_ms = max(500, _milliseconds(limits.timeout_seconds) - keepalive_ms)
    return [
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", 2 * limits.metadata_bytes),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # identity only: no message grows when it is read
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", patience_ms),
        ("grpc.http2.ping_timeout_ms", patience_ms),  # 60 s by default, whatever the keepalive timeout says
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_frame_size", _MOST_FRAME_BYTES),
        ("grpc.optimization_target", "throughput"),
    ]


def _keepalive_ms(limits: Limits) -> int:
    """A ping each heartbeat, or three within a shorter timeout."""
    return max(1, min(_milliseconds(limits.heartbeat_seconds), _milliseconds(limits.timeout_seconds) // 3))


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
