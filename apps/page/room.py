"""What one visitor has open: tabs, each a conversation with a state of its own. Forks are tabs.

Everything here blocks and belongs into a thread; `apps.page.link` sees to it that one call runs at a time. Only
answers stream beside each other, one in each tab.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apps.page.cameras import Camera, PageCamera, RobotCamera, Shot, Tap
from apps.page.messages import Camera as CameraName
from runtime import GenerateOptions, Session, VisualRWKV
from runtime.camera import Timing
from runtime.errors import ConfigError, InputError, StateError
from runtime.spec import Padding
from runtime.watch import Watch

MAX_TABS = 8
MAX_ENTRIES = 100  # questions of a tab that are remembered for the page; the state remembers by itself
HORIZON = 2048  # positions fed while watching before the state is made clean again
KEEP = 4  # frames shown again then
WINDOW = 4  # frames a question sees where a model takes no pictures before it knows the question
NEVER = Timing(stall_s=1e9)  # a page that is silent is no broken camera


@dataclass(eq=False)
class Entry:
    """A question in the history of a tab."""

    question: str
    picture: str = ""  # data: address of the frame it was asked about
    answer: str = ""
    finish: str = ""  # empty while the answer streams
    kept: bool = True  # False: asked while watching, on a copy that is gone
    figures: dict[str, float] = field(default_factory=dict)


class Tab:
    """One conversation."""

    def __init__(self, number: int, name: str, session: Session) -> None:
        self.number, self.name, self.session = number, name, session
        self.entries: deque[Entry] = deque(maxlen=MAX_ENTRIES)
        self.watching: Watch | None = None
        self.tap: Tap | None = None
        self.camera: CameraName = "none"  # that is watched
        self.seen: Shot | None = None  # the newest picture that the watch was given
        self.shown: tuple[CameraName, int] | None = None  # the last picture that was asked about
        self.steps = 0  # answers that can be taken back
        self.answering = self.broken = False
        self._nbytes = session.nbytes  # never changes; asked for now, while no answer runs
        self._before = {"fed": 0, "dropped": 0, "unchanged": 0}  # by watches that are over

    def describe(self) -> dict[str, Any]:
        """What the page shows of a tab, but its history."""
        counts, watch = dict(self._before), self.watching  # which may end meanwhile
        if watch is not None:
            stats = watch.stats
            counts = {name: value + getattr(stats, name) for name, value in counts.items()}
        return {
            "tab": self.number,
            "name": self.name,
            "watching": self.camera,
            "window": (watch.options.window or 0) if watch is not None else 0,
            "answering": self.answering,
            "undo": self.steps if watch is None else 0,
            "tokens": self.session.tokens,
            "pictures": self.session.frames,
            "bytes": self._nbytes + (watch.nbytes if watch else 0),
            **counts,
        }

    def history(self) -> list[dict[str, Any]]:
        """The questions and answers, oldest first."""
        return [asdict(entry) for entry in self.entries]

    def end_watch(self) -> None:
        """Give the session back to its owner; what was fed stays seen."""
        watch, tap = self.watching, self.tap
        if watch is None:
            return
        if tap is not None:
            tap.close()
        watch.close()
        self._before = {name: value + getattr(watch.stats, name) for name, value in self._before.items()}
        self.watching, self.tap, self.camera, self.seen = None, None, "none", None
        self.steps, self.shown = 0, None  # undo would now take back watched frames, one by one

    def close(self) -> None:
        """End what runs."""
        self.session.cancel()
        self.end_watch()


class Room:
    """The tabs of one visitor, and the camera of the page."""

    def __init__(
        self,
        key: str,
        model: VisualRWKV,
        options: GenerateOptions,
        padding: Padding | None = None,
        robot: RobotCamera | None = None,
    ) -> None:
        """Open the first tab; `key` is what the page shows to find this room again."""
        self.key, self.model, self.options, self._padding = key, model, options, padding
        self.page, self.robot = PageCamera(), robot
        self.tabs: dict[int, Tab] = {}
        self._last = 0
        self.open("Main")

    def tab(self, number: int) -> Tab:
        """Return an open tab. Raises `InputError` for one that is not."""
        if number not in self.tabs:
            raise InputError("this tab is closed", hint="choose another, or reload the page")
        return self.tabs[number]

    def camera(self, name: CameraName) -> Camera | None:
        """Return a camera by its name. Raises `InputError` for the robot's where there is none."""
        if name == "robot" and self.robot is None:
            raise InputError("the server was started without a camera", hint="start it with --source")
        return {"page": self.page, "robot": self.robot, "none": None}[name]

    def open(self, name: str, session: Session | None = None) -> Tab:
        """Open a tab. Raises `ConfigError` where there is no room for another."""
        if len(self.tabs) >= MAX_TABS:
            raise ConfigError(f"{MAX_TABS} tabs are open", hint="close one first: every tab holds a state of its own")
        session = session or self.model.session(padding=self._padding)
        self._last += 1
        tab = self.tabs[self._last] = Tab(self._last, name, session)
        return tab

    def fork(self, tab: Tab) -> Tab:
        """Open a tab that has seen and said the same."""
        if len(self.tabs) >= MAX_TABS:
            self.open("")  # says what to do
        if tab.watching is None:
            session = tab.session.fork()
        else:
            session = self.model.session(padding=self._padding)
            session.restore(tab.watching.snapshot())
        other = self.open(f"Fork {self._last}", session)
        other.entries.extend(Entry(**asdict(entry)) for entry in tab.entries)
        return other

    def undo(self, tab: Tab) -> None:
        """Take back the last question, its answer and its picture."""
        if tab.watching is not None:
            raise StateError("a tab that watches has nothing to undo", hint="stop watching first")
        tab.session.undo()
        if tab.entries:
            tab.entries.pop()
        tab.steps, tab.shown, tab.broken = max(0, tab.steps - 1), None, False

    def reset(self, tab: Tab) -> None:
        """Forget everything; a tab that watches goes on watching."""
        if tab.answering:
            raise StateError("this tab is answering", hint="stop the answer first")
        camera = tab.camera
        tab.end_watch()
        tab.session.reset()
        tab.entries.clear()
        tab.steps, tab.shown, tab.broken = 0, None, False
        if camera != "none":
            self.watch(tab, camera)

    def close_tab(self, tab: Tab) -> None:
        """Forget a tab. Raises `ConfigError` for the last one."""
        if len(self.tabs) == 1:
            raise ConfigError("this is the only tab", hint="start it over instead")
        tab.close()
        del self.tabs[tab.number]

    def watch(self, tab: Tab, name: CameraName) -> None:
        """Feed the newest pictures of a camera to the state from now on; "none" ends it."""
        camera = self.camera(name)
        tab.end_watch()
        if camera is None:
            return

        def shown(shot: Shot) -> None:
            tab.seen = shot

        tap = Tap(camera, shown)
        vision = self.model.manifest.vision
        horizon = tab.session.tokens + max(HORIZON, 2 * (KEEP + 1) * (vision.tokens if vision else 0))
        common: dict[str, Any] = {"policy": "adaptive", "fps": 5.0, "timing": NEVER}
        try:
            tab.watching = tab.session.watch(tap, horizon=horizon, keep=KEEP, **common)
        except ConfigError:
            tab.watching = tab.session.watch(tap, window=WINDOW, **common)
        tab.tap, tab.camera = tap, name

    def save(self, tab: Tab, path: Path) -> None:
        """Write a conversation to a file. Raises as `Session.save`."""
        (tab.watching or tab.session).save(path)

    def load(self, path: Path) -> Tab:
        """Open a tab on what `save` wrote. Raises `StateError` for a file that cannot be used."""
        tab = self.open(f"File {self._last}", self.model.session(path))
        for turn in tab.session.history[-MAX_ENTRIES:]:
            tab.entries.append(Entry(turn.question, "", turn.answer or "", turn.finish_reason or "stop"))
        return tab

    def close(self) -> None:
        """End what runs in all tabs."""
        for tab in list(self.tabs.values()):
            tab.close()
