"""The benchmarks: how each is read, judged and asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from apps.evaluate.demo_scenes import Demo, letter_worth
from apps.evaluate.gqa import Gqa, exact_worth, gqa_official_worth
from apps.evaluate.judges import EachAlone, Judge, MmBench, Mme, Pope
from apps.evaluate.letters import scienceqa_choice, scienceqa_choice_official
from apps.evaluate.multiple_choice import MmBench as MmBenchSource
from apps.evaluate.multiple_choice import MmBenchCn, ScienceQa
from apps.evaluate.sample import Problem, Sample
from apps.evaluate.short_answers import TextVqa, VqaV2, textvqa_worth, vqa_worth
from apps.evaluate.source import Data, Notes, Source
from apps.evaluate.yes_no import Mme as MmeSource
from apps.evaluate.yes_no import Pope as PopeSource
from runtime.errors import ConfigError


@dataclass(frozen=True)
class Task:
    """One benchmark."""

    name: str
    title: str
    source: Source
    judge: Judge
    max_tokens: int = 128  # as in the official scripts
    whole_groups: bool = False  # a group is judged only if all of it was read and answered
    limit_groups: bool = False  # --limit counts groups


def _scienceqa(answer: str, truth: str) -> float:
    return float(scienceqa_choice(answer) == truth)


def _scienceqa_official(answer: str, truth: str) -> float:
    return float(scienceqa_choice_official(answer) == truth)


_BOTH = ("accuracy", "accuracy_official")
_ALL = (
    Task("vqav2", "VQA-v2", VqaV2(), EachAlone(vqa_worth)),
    Task("gqa", "GQA", Gqa(), EachAlone(exact_worth, gqa_official_worth, names=_BOTH)),
    Task("scienceqa", "ScienceQA-IMG", ScienceQa(), EachAlone(_scienceqa, _scienceqa_official, names=_BOTH)),
    Task("textvqa", "TextVQA", TextVqa(), EachAlone(textvqa_worth)),
    Task("pope", "POPE", PopeSource(), Pope()),
    Task("mme", "MME", MmeSource(), Mme(), whole_groups=True, limit_groups=True),
    Task("mmbench", "MMBench", MmBenchSource(), MmBench(), whole_groups=True, limit_groups=True),
    Task("mmbench_cn", "MMBench-CN", MmBenchCn(), MmBench(), whole_groups=True, limit_groups=True),
    Task("demo", "demo scenes", Demo(), EachAlone(letter_worth), max_tokens=16, limit_groups=True),
)
TASKS = {task.name: task for task in _ALL}


def tasks_of(names: str) -> list[Task]:
    """Return the tasks of a comma-separated list. Raises `ConfigError` for another name."""
    wanted = [name.strip().lower().replace("-", "_") for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in TASKS]
    if unknown or not wanted:
        raise ConfigError(f"--task {names}", wanted=f"of {', '.join(TASKS)}, separated by commas")
    return [TASKS[name] for name in dict.fromkeys(wanted)]


@dataclass
class Plan:
    """What is to be asked, known before anything is: no pictures are in memory."""

    task: Task
    samples: list[Sample]
    problems: list[Problem]
    notes: Notes
    rows: int = 0  # read, good or bad
    broken: set[str] = field(default_factory=set)  # groups that cannot be judged

    @property
    def keys(self) -> set[str]:
        """Keys of all samples."""
        return {sample.key for sample in self.samples}


def plan(task: Task, data: Data, limit: int | None = None) -> Plan:
    """Read all of a task's rows but its pictures, and choose what is asked.

    Raises:
        ConfigError: no such data, or nothing in it fits the task.
    """
    notes = Notes()
    found = Plan(task, [], [], notes)
    seen: set[str] = set()
    for item in task.source.read(data, False, notes):
        found.rows += 1
        if isinstance(item, Sample) and item.key in seen:
            item = Problem(f"question {item.key}", "comes twice", item.group)
        if isinstance(item, Problem):
            found.problems.append(item)
            found.broken |= {item.group} - {""}
        else:
            seen.add(item.key)
            found.samples.append(item)
    if not found.samples:
        first = found.problems[0] if found.problems else Problem("the data", "no rows at all")
        raise ConfigError(
            f"nothing in {', '.join(notes.files)} fits {task.title}: {first.where}: {first.what}",
            wanted=task.source.layouts,
            hint="is it the data of another task?",
        )
    if task.whole_groups:
        _check_groups(found)
    if limit is not None:
        chosen = set(list(dict.fromkeys(_unit(task, s) for s in found.samples if s.group not in found.broken))[:limit])
        found.samples = [sample for sample in found.samples if _unit(task, sample) in chosen]
    return found


def _unit(task: Task, sample: Sample) -> str:
    return sample.group if task.limit_groups else sample.key


def _check_groups(found: Plan) -> None:
    for name, group in groups_of(found.samples).items():
        if name in found.broken:
            continue
        if what := found.task.source.check_group(group):
            found.problems.append(Problem(f"question {group[0].key}", what, name))
            found.broken.add(name)
    found.samples = [sample for sample in found.samples if sample.group not in found.broken]


def groups_of(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Return the samples by group, groups in order of their first."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return groups


def listing(tasks: Sequence[Task] = _ALL) -> str:
    """Return a table of the tasks and of the files that each is read from."""
    return "\n".join(f"{task.name:<12}{task.title:<15}{task.source.layouts}" for task in tasks)
