"""As much of rclpy as the example node uses: topics in one process, parameters, timers that are fired by hand."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Stamp:
    sec: int = 0
    nanosec: int = 0


@dataclass
class Header:
    stamp: Stamp = field(default_factory=Stamp)


@dataclass
class Image:
    header: Header = field(default_factory=Header)
    height: int = 0
    width: int = 0
    encoding: str = ""
    is_bigendian: int = 0
    step: int = 0
    data: Any = b""


@dataclass
class CompressedImage:
    header: Header = field(default_factory=Header)
    format: str = ""
    data: Any = b""


@dataclass
class String:
    data: str = ""


class Publisher:
    def __init__(self) -> None:
        self.sent: list[String] = []

    def publish(self, message: String) -> None:
        assert isinstance(message, String) and isinstance(message.data, str)
        self.sent.append(message)


class Logger:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Callable[[str], None]:
        return lambda text: self.lines.append((level, text))


class Node:
    overrides: dict[str, Any] = {}  # noqa: RUF012 - set by tests, as a launch file would

    def __init__(self, name: str) -> None:
        self.name, self.logger = name, Logger()
        self.parameters: dict[str, Any] = {}
        self.publishers_: dict[str, Publisher] = {}
        self.subscribed: dict[str, tuple[type, Callable[[Any], None], Any]] = {}
        self.timers_: list[tuple[float, Callable[[], None]]] = []
        self.destroyed = False

    def declare_parameter(self, name: str, value: Any) -> None:
        self.parameters[name] = self.overrides.get(name, value)

    def get_parameter(self, name: str) -> Any:
        return types.SimpleNamespace(value=self.parameters[name])

    def create_publisher(self, kind: type, topic: str, depth: int) -> Publisher:
        assert kind is String and depth > 0
        return self.publishers_.setdefault(topic, Publisher())

    def create_subscription(self, kind: type, topic: str, call: Callable[[Any], None], qos: Any) -> None:
        self.subscribed[topic] = (kind, call, qos)

    def create_timer(self, period: float, call: Callable[[], None]) -> None:
        self.timers_.append((period, call))

    def get_logger(self) -> Logger:
        return self.logger

    def destroy_node(self) -> None:
        self.destroyed = True

    def deliver(self, topic: str, message: Any) -> None:
        """Do what the executor does with an arriving message."""
        kind, call, _ = self.subscribed[topic]
        assert type(message) is kind
        call(message)


class ExternalShutdownException(Exception):
    pass


def install(monkeypatch: pytest.MonkeyPatch, spin: Callable[[Node], None] | None = None) -> list[str]:
    """Put the modules in place; returns what was called of rclpy itself."""
    calls: list[str] = []
    rclpy = types.ModuleType("rclpy")
    rclpy.init = lambda args=None: calls.append("init")  # type: ignore[attr-defined]
    rclpy.spin = spin or (lambda node: None)  # type: ignore[attr-defined]
    rclpy.try_shutdown = lambda: calls.append("shutdown")  # type: ignore[attr-defined]
    contents: dict[str, dict[str, Any]] = {
        "rclpy.node": {"Node": Node},
        "rclpy.qos": {"qos_profile_sensor_data": "sensor data"},
        "rclpy.executors": {"ExternalShutdownException": ExternalShutdownException},
        "sensor_msgs.msg": {"Image": Image, "CompressedImage": CompressedImage},
        "std_msgs.msg": {"String": String},
    }
    monkeypatch.setitem(sys.modules, "rclpy", rclpy)
    for name, names in contents.items():
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    return calls
