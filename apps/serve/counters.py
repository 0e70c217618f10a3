"""What the server counts, as text for Prometheus beside the runtime's own metrics."""

from __future__ import annotations

from collections import Counter

from apps.serve.slots import Slots
from apps.serve.states import States
from apps.web.guard import App, Message, Receive, Scope, Send

SOURCES = ("state", "history", "nothing")


class Counters:
    """The server's numbers. For one event loop."""

    def __init__(self, slots: Slots, states: States) -> None:
        """Count from zero; slots and states are asked when somebody wants to know."""
        self._slots, self._states = slots, states
        self.statuses: Counter[int] = Counter()
        self.begun = Counter(dict.fromkeys(SOURCES, 0))  # answers by what they went on from
        self.disconnects = self.timeouts = 0

    def prometheus(self) -> str:
        """Return everything in Prometheus' text format, version 0.0.4."""
        slots, states = self._slots, self._states
        lines = _family("requests_total", "counter", "Requests by the status they got.")
        lines += [f'vrwkv_server_requests_total{{status="{key}"}} {n}' for key, n in sorted(self.statuses.items())]
        lines += _family("answers_begun_total", "counter", "Answers by what they went on from.")
        lines += [f'vrwkv_server_answers_begun_total{{from="{key}"}} {n}' for key, n in sorted(self.begun.items())]
        for name, kind, text, value in (
            ("disconnects_total", "counter", "Clients that left before their answer was complete.", self.disconnects),
            ("timeouts_total", "counter", "Answers that took too long.", self.timeouts),
            ("queue_seconds_sum", "counter", "Time that requests waited for a slot.", slots.waited_s),
            ("queue_seconds_count", "counter", "Requests that got a slot.", slots.lent),
            ("slots", "gauge", "Answers that can be computed at a time.", slots.count),
            ("answering", "gauge", "Answers being computed.", slots.answering),
            ("waiting", "gauge", "Requests waiting for a slot.", slots.waiting),
            ("states", "gauge", "Conversations kept.", len(states)),
            ("state_bytes", "gauge", "Bytes of the conversations kept.", states.nbytes),
            ("states_evicted_total", "counter", "Conversations dropped for others.", states.evicted),
            ("states_expired_total", "counter", "Conversations dropped for their age.", states.expired),
        ):
            lines += [*_family(name, kind, text), f"vrwkv_server_{name} {value}"]
        return "".join(f"{line}\n" for line in lines)


class Counted:
    """ASGI middleware that counts statuses."""

    def __init__(self, app: App, counters: Counters) -> None:
        """Count into `counters`."""
        self._app, self._counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counters.statuses[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


def _family(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP vrwkv_server_{name} {text}", f"# TYPE vrwkv_server_{name} {kind}"]
