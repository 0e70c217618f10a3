"""Kept conversations: going on, forking, taking back; bounded in every way."""

from __future__ import annotations

import numpy as np
import pytest

from apps.serve.failures import Refused
from apps.serve.states import States
from runtime import Snapshot
from runtime.progress import Picture, Progress, SessionSnapshot
from runtime.prompt import Turn
from tests.apps.serve.conftest import Serve, Server, data_url, frame_at, said, show


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def snapshot(kilobytes: int = 1, progress: Progress | None = None) -> SessionSnapshot:
    state = Snapshot({"state": np.zeros(kilobytes << 8, np.float32)})
    return SessionSnapshot(state, progress or Progress(), "none")


def keep(states: States, name: bytes, parent: str | None = None, kilobytes: int = 1) -> str:
    kept = states.put(snapshot(kilobytes), name, parent)
    assert kept is not None
    return kept.id


def test_the_least_used_goes_first() -> None:
    states = States(3, 1 << 20, 60)
    first, second, third = (keep(states, name) for name in (b"a", b"b", b"c"))
    states.get(first)
    fourth = keep(states, b"d")
    assert [states.is_kept(name) for name in (first, second, third, fourth)] == [True, False, True, True]
    assert (len(states), states.evicted, states.nbytes) == (3, 1, 3 << 10)
    assert states.find(b"b") is None
    with pytest.raises(Refused) as found:
        states.get(second)
    assert found.value.status == 404


def test_bytes_are_bounded() -> None:
    states = States(100, 10 << 10, 60)
    names = [keep(states, b"%d" % n, kilobytes=4) for n in range(5)]
    assert [states.is_kept(name) for name in names] == [False, False, False, True, True]
    assert states.nbytes == 8 << 10
    assert states.put(snapshot(11), b"large", None) is None
    assert len(states) == 2  # nothing had to go for it
    waiting = Progress(queue=[Picture(np.zeros((4, 256), np.float32))], history=[Turn("q" * 100, 1, "a" * 156)])
    kept = states.put(snapshot(1, waiting), b"picture", None)
    assert kept is not None and kept.nbytes == 1024 + 4096 + 4 * 256


def test_what_nobody_uses_goes() -> None:
    clock = Clock()
    states = States(10, 1 << 20, 60, clock=clock)
    first, second = keep(states, b"a"), keep(states, b"b")
    clock.now += 59
    assert states.expires_in(states.get(first)) == 60
    clock.now += 2
    states.expire()
    assert (states.is_kept(first), states.is_kept(second), states.expired) == (True, False, 1)
    clock.now += 60
    assert states.find(b"a") is None
    assert (len(states), states.nbytes) == (0, 0)


def test_nothing_is_kept_where_nothing_may_be() -> None:
    assert States(0, 1 << 20, 60).put(snapshot(), b"a", None) is None


def test_names_cannot_be_guessed() -> None:
    states = States(1000, 1 << 30, 60)
    names = {keep(states, b"same") for _ in range(500)}
    assert len(names) == 500
    assert all(len(name) == len("state-") + 32 for name in names)


def test_forks_and_undo() -> None:
    states = States(10, 1 << 20, 60)
    first = keep(states, b"a")
    second = keep(states, b"ab", parent=first)
    fork = states.fork(second)
    assert (fork.parent, fork.snapshot) == (first, states.get(second).snapshot)
    assert states.undo(second).id == first
    assert not states.is_kept(second) and states.is_kept(fork.id)
    with pytest.raises(Refused, match="is not kept"):
        states.undo(first)
    assert states.is_kept(first)
    states.delete(first)
    with pytest.raises(Refused, match="is not kept"):
        states.undo(fork.id)
    found = states.find(b"ab")
    assert found is not None and found.id == fork.id
    states.clear()
    assert (len(states), states.nbytes) == (0, 0)


PICTURE = data_url(frame_at(0.8))


def test_a_conversation_goes_on_from_any_point(server: Server) -> None:
    _, first = server.chat(show("Where is the circle?", PICTURE))
    texts = []
    for state in (first["state"], first["state"], None):
        history = [] if state else [show("Where is the circle?", PICTURE), said("bottom left")]
        _, found = server.chat(*history, "What colour is the circle?", **({"state": state} if state else {}))
        texts.append(found["choices"][0]["message"]["content"])
    assert texts == ["yellow"] * 3


def test_states_over_http(server: Server) -> None:
    _, first = server.chat(show("Where is the circle?", PICTURE))
    _, second = server.chat("What colour is the circle?", state=first["state"])
    status, info, _ = server.call("GET", f"/v1/states/{second['state']}")
    assert (status, info["turns"], info["parent"]) == (200, 2, first["state"])
    assert info["tokens"] == second["usage"]["total_tokens"] - 1  # the answer's last token is fed with the next turn
    assert info["bytes"] > 100_000 and 0 < info["expires_in_s"] <= 3600
    status, fork, _ = server.call("POST", f"/v1/states/{second['state']}/fork")
    assert (status, fork["turns"]) == (200, 2) and fork["id"] != second["state"]
    assert server.call("POST", f"/v1/states/{fork['id']}/undo")[1]["id"] == first["state"]
    assert server.call("GET", f"/v1/states/{fork['id']}")[0] == 404
    status, gone, _ = server.call("DELETE", f"/v1/states/{second['state']}")
    assert (status, gone["deleted"]) == (200, True)
    for method in ("GET", "DELETE"):
        assert server.call(method, f"/v1/states/{second['state']}")[0] == 404
    assert server.refused("And now?", state=second["state"]) == (404, "state_not_found")
    assert server.call("POST", f"/v1/states/{first['state']}/undo")[1]["error"]["code"] == "nothing_to_undo"


def test_who_wants_nothing_kept_gets_no_state(server: Server) -> None:
    before = server.metric("states ")
    _, answer = server.chat("Is anyone there?", store=False)
    assert answer["state"] is None
    assert server.metric("states ") == before


def test_states_over_http_are_bounded(serve: Serve, demo: object) -> None:
    server = serve(demo, states=3, slots=1)
    names = [server.chat(f"Question {n}", max_tokens=2)[1]["state"] for n in range(5)]
    assert [server.call("GET", f"/v1/states/{name}")[0] for name in names] == [404, 404, 200, 200, 200]
    assert server.metric("states_evicted_total") == 2


@pytest.mark.parametrize("name", ["x", "state-", "..%2f..%2fetc%2fpasswd", "state-" + "%00" * 32, "state-" + "é" * 32])
def test_what_is_no_name_is_refused(server: Server, name: str) -> None:
    from urllib.parse import quote

    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/fork"), ("POST", "/undo")):
        status, found, _ = server.call(method, f"/v1/states/{quote(name, safe='%')}{tail}")
        assert status in (400, 404) and found["error"]["message"]
