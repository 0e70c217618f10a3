"""A bundle as lmms-eval asks models: only imported where lmms-eval is installed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from apps.bundles import find_bundle
from apps.evaluate.answers import Answer
from apps.evaluate.run import ask
from apps.evaluate.sample import Problem, Sample
from runtime import GenerateOptions, VisualRWKV
from runtime.errors import ConfigError, InputError


class VisualRwkvEdge(import_module("lmms_eval.api.model").lmms):  # type: ignore[misc]
    """Answers lmms-eval's requests, `batch_size` of them at a time, with sessions that share steps."""

    is_simple = True

    def __init__(
        self,
        bundle: str,
        device: str = "auto",
        threads: int | str | None = None,
        batch_size: int | str = 8,
        max_tokens: int | str = 128,
        **unknown: Any,
    ) -> None:
        """Load a bundle; the arguments are those of --model_args.

        Args:
            bundle: its folder.
            device: as in `VisualRWKV.load`, which takes what lmms-eval calls "cuda:0" for "auto".
            threads: compute threads.
            batch_size: requests at a time.
            max_tokens: most tokens of an answer; a task that wants fewer gets fewer.
            unknown: what lmms-eval itself adds.

        Raises:
            ConfigError, BundleError: as `VisualRWKV.load`.
        """
        super().__init__()
        wrong = sorted(unknown.keys() - {"max_batch_size"})
        if wrong:
            known = "bundle, device, threads, batch_size, max_tokens"
            raise ConfigError(f"--model_args {', '.join(wrong)}", wanted=known)
        self._batch, self._max_tokens = max(1, int(batch_size)), int(max_tokens)
        self._model = VisualRWKV.load(
            find_bundle(Path(bundle)),
            "auto" if device is None or device.startswith("cuda") else device,
            threads=None if threads is None else int(threads),
            sessions=self._batch,
            undo_bytes=0,
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers to requests, in their order. Raises the error of the first that cannot be answered."""
        progress = import_module("tqdm").tqdm(total=len(requests), desc="Model Responding")
        answers: list[str] = [""] * len(requests)
        errors = list[BaseException]()
        todo, lock = iter(enumerate(requests)), threading.Lock()

        def work() -> None:
            session = self._model.session()
            while not errors:
                with lock:
                    number, request = next(todo, (-1, None))
                if request is None:
                    return
                try:
                    outcome = ask(session, *self._asked(number, request))
                    if isinstance(outcome, Problem):
                        raise InputError(f"{outcome.where}: {outcome.what}")
                    assert isinstance(outcome, Answer)
                    answers[number] = outcome.text
                    progress.update(1)
                except BaseException as error:
                    errors.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self._batch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.close()
        if errors:
            raise errors[0]
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not what the papers' tasks ask for. Raises `ConfigError`."""
        raise ConfigError("a task that wants likelihoods", wanted="tasks that generate answers")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not what the papers' tasks ask for. Raises `ConfigError`."""
        raise ConfigError("a task of several rounds", wanted="tasks that generate answers")

    def _asked(self, number: int, request: Any) -> tuple[Sample, GenerateOptions]:
        text, settings, visuals, document, task, split = request.args
        row = self.task_dict[task][split][document]
        pictures = tuple(_reader(picture) for picture in visuals(row) or ())
        sample = Sample(f"{task}/{document}", text, pictures, None, "", str(number))
        return sample, self._options(settings)

    def _options(self, settings: dict[str, Any]) -> GenerateOptions:
        """What a task wants of generation; greedy, as the official evaluation, unless it samples."""
        until = settings.get("until") or ()
        stops = tuple(stop for stop in ((until,) if isinstance(until, str) else until) if stop.strip())
        limit = min(self._max_tokens, int(settings.get("max_new_tokens", self._max_tokens)))
        options = GenerateOptions(max_tokens=limit, stop=stops)
        if not settings.get("do_sample"):
            return options
        wanted = {name: float(settings[name]) for name in ("temperature", "top_p") if settings.get(name) is not None}
        return replace(options, **wanted)  # type: ignore[arg-type]


def _reader(picture: Any) -> Callable[[], np.ndarray]:
    """A PIL picture, or whatever else lmms-eval hands over, as RGB uint8 [H, W, 3] when it is asked for."""

    def read() -> np.ndarray:
        if not hasattr(picture, "convert"):
            raise InputError(f"a {type(picture).__name__} to look at", wanted="a picture")
        return np.asarray(picture.convert("RGB"))

    return read
