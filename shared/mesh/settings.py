"""What a process is told by its environment (names in README.md)."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Misconfigured(Exception):
    """A setting is missing or wrong; the text says which and what to do."""


def _hurried(env: Mapping[str, str]) -> bool:
    hurried = env.get("STEWARD_KAFKA_HURRIED") == "1"
    if hurried and env.get("STEWARD_ENV") == "production":
        raise Misconfigured("STEWARD_KAFKA_HURRIED=1 is refused when STEWARD_ENV=production: a reader that is away for some "
                            "seconds would miss what compacted topics forget")  # fmt: skip
    return hurried


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach Kafka."""

    bootstrap_servers: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = None
    ssl_cafile: str | None = None
    replication: int = 1
    # Compacted topics forget within seconds: a developer's machine, a test.
    hurried: bool = False

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> KafkaSettings:
        """Reads STEWARD_KAFKA_*. Raises `Misconfigured` when the bootstrap servers are not set."""
        servers = env.get("STEWARD_KAFKA_BOOTSTRAP_SERVERS")
        if not servers:
            raise Misconfigured("STEWARD_KAFKA_BOOTSTRAP_SERVERS is not set: start with `steward up`, or set it")
        return cls(
            bootstrap_servers=servers,
            security_protocol=env.get("STEWARD_KAFKA_SECURITY_PROTOCOL", "PLAINTEXT"),
            sasl_mechanism=env.get("STEWARD_KAFKA_SASL_MECHANISM"),
            sasl_username=env.get("STEWARD_KAFKA_SASL_USERNAME"),
            sasl_password=env.get("STEWARD_KAFKA_SASL_PASSWORD"),
            ssl_cafile=env.get("STEWARD_KAFKA_SSL_CAFILE"),
            replication=int(env.get("STEWARD_KAFKA_REPLICATION", "1")),
            hurried=_hurried(env),
        )

    def client(self) -> dict[str, Any]:
        """Arguments for any aiokafka client."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if "SSL" in self.security_protocol:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            arguments["ssl_context"] = context
        if self.sasl_mechanism:
            arguments["sasl_mechanism"] = self.sasl_mechanism
            arguments["sasl_plain_username"] = self.sasl_username
            arguments["sasl_plain_password"] = self.sasl_password
        return arguments


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What one service process needs."""

    name: str
    environment: str
    kafka: KafkaSettings
    database_url: str
    owner_database_url: str
    keys_database_url: str | None
    keys_owner_database_url: str | None
    port: int
    host: str = "127.0.0.1"
    clock: str | None = None
    master_key_file: str | None = None
    master_key: str | None = field(default=None, repr=False)
    signing_key_file: str | None = None
    session_timeout_ms: int = 15_000
    batch_records: int = 5_000
    linger_ms: int = 25
    drain_seconds: float = 25.0
    smtp_url: str | None = None
    mail_from: str | None = None
    blobs: str | None = None
    public_port: int = 0
    public_url: str | None = None

    @classmethod
    def from_env(cls, name: str, env: Mapping[str, str] = os.environ) -> ServiceSettings:
        """Reads STEWARD_<NAME>_* and the common settings. Raises `Misconfigured` with the variable's name."""
        upper = name.upper()

        def need(variable: str) -> str:
            value = env.get(variable)
            if not value:
                raise Misconfigured(f"{variable} is not set: `steward up` writes it to .steward/env")
            return value

        def number(variable: str, default: str) -> float:
            value = env.get(variable, default)
            try:
                return float(value)
            except ValueError:
                raise Misconfigured(f"{variable} must be a number") from None

        settings = cls(
            name=name,
            environment=env.get("STEWARD_ENV", "local"),
            kafka=KafkaSettings.from_env(env),
            database_url=need(f"STEWARD_{upper}_DATABASE_URL"),
            owner_database_url=need(f"STEWARD_{upper}_OWNER_DATABASE_URL"),
            # The auditor reads, as everywhere, with a login that can do no more.
            keys_database_url=env.get(f"STEWARD_{'AUDITOR_' if name == 'audit' else ''}KEYS_DATABASE_URL"),
            keys_owner_database_url=None if name == "audit" else env.get("STEWARD_KEYS_OWNER_DATABASE_URL"),
            port=int(number(f"STEWARD_{upper}_PORT", "0")),
            host=env.get("STEWARD_HTTP_HOST", "127.0.0.1"),
            clock=env.get("STEWARD_CLOCK"),
            master_key_file=env.get("STEWARD_MASTER_KEY_FILE"),
            master_key=env.get("STEWARD_MASTER_KEY"),
            signing_key_file=env.get("STEWARD_SIGNING_KEY_FILE"),
            session_timeout_ms=int(number("STEWARD_SESSION_TIMEOUT_MS", "15000")),
            batch_records=int(number("STEWARD_BATCH_RECORDS", "5000")),
            linger_ms=int(number("STEWARD_LINGER_MS", "25")),
            drain_seconds=number("STEWARD_DRAIN_SECONDS", "25"),
            smtp_url=env.get("STEWARD_SMTP_URL"),
            mail_from=env.get("STEWARD_MAIL_FROM"),
            blobs=env.get("STEWARD_BLOBS"),
            public_port=int(number(f"STEWARD_{upper}_PUBLIC_PORT", "0")),
            public_url=(env.get("STEWARD_PUBLIC_URL") or "").rstrip("/") or None,
        )
        if settings.drain_seconds <= 0:
            raise Misconfigured("STEWARD_DRAIN_SECONDS must be above 0: without a drain a batch is cut in its middle")
        return settings
