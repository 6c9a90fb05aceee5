"""Run a grid of models on synthetic tasks, cell by cell, in one or several processes, resumable.

Every cell has a folder named by a hash of everything that affects its result: journal and checkpoints while it runs,
``result.json`` when it is done. Processes that run the same recipe concurrently take different cells.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from mesalm.data.stream import Position, RowStream
from mesalm.data.synthetic.drawn_stream import DrawnStream, StepPosition
from mesalm.data.synthetic.tasks import SyntheticTask
from mesalm.data.synthetic.token_task import NOT_SCORED, TokenRows, TokenTask, collate_rows
from mesalm.data.synthetic.vector_task import VectorTask
from mesalm.files import write_text
from mesalm.journal import Journal
from mesalm.locks import locked
from mesalm.runs import RunFiles
from mesalm.settings import SettingsError
from mesalm.synthetic.model import build_model
from mesalm.synthetic.recipe import Cell, SyntheticRecipe, planned_cells, planned_count
from mesalm.synthetic.results import cells_folder, read_result, read_results
from mesalm.train import training
from mesalm.train.guard import NonFiniteError
from mesalm.train.launch import end_run, make_accelerator
from mesalm.train.loop import Outcome, Probe, Stream
from mesalm.train.progress import Display
from mesalm.train.randomness import seed_everything
from mesalm.train.speeds import device_name
from mesalm.versions import versions
from mesalm.wording import plural

FEWEST_ROWS = 32
"""Minimum number of scored rows, however long they are."""


class Scored(Protocol):
    """The score of a model on rows of a task: one number, which way is better, and all else as plain data."""

    @property
    def value(self) -> float: ...

    @property
    def better(self) -> str: ...

    def plain(self) -> dict[str, Any]: ...


class CellScorer(Protocol):
    """Scores of a model in evaluation mode on the ``rows`` of a split ("valid" or "test") of a task."""

    def __call__(
        self, model: nn.Module, task: SyntheticTask, split: Any, rows: int, *, seed: int, batch_rows: int
    ) -> Scored: ...


def run_grid(recipe: SyntheticRecipe, score: CellScorer, *, quiet: bool = False) -> None:
    """Run every cell of a recipe that has no result yet and that no other process is running.

    ``quiet`` prints nothing. Raises Interrupted (a SystemExit with code 130 or 143) after Ctrl-C or SIGTERM, once the
    cell's checkpoint is written; SettingsError for a launch with several processes in one group.
    """
    total = planned_count(recipe)
    folder = cells_folder(recipe)
    while True:
        results = read_results(folder)
        due = [cell for cell in planned_cells(recipe, results) if cell.folder_name not in results]
        taken = False
        for cell in due:
            with _claim(folder / cell.folder_name) as mine:
                if mine and read_result(folder / cell.folder_name) is None:
                    done = sum(cell.folder_name in results for cell in planned_cells(recipe, results))
                    CellRun(cell, folder / cell.folder_name, score, f"[{done + 1}/{total}]", quiet).finish()
                    taken = True
                    break
        if not taken:
            return


class CellRun:
    """The training and scoring of one cell."""

    def __init__(self, cell: Cell, folder: Path, score: CellScorer, place: str, quiet: bool) -> None:
        self.cell, self.files, self.score = cell, RunFiles(folder), score
        self.run = cell.setting.run
        self.task = self.run.build_task()
        self.steps = self.run.train.steps or 0
        self.display = Display(f"{place} {cell.title}", self.steps, enabled=not quiet)
        self.valid: Scored | None = None

    def finish(self) -> None:
        """Train from the newest checkpoint or from the start, score, and write the result."""
        accelerator = make_accelerator(device=self.run.train.device, precision=self.run.train.precision)
        try:
            if accelerator.num_processes > 1:
                raise SettingsError(
                    "synth: each of these small models trains in one process; start the command several times "
                    "without a launcher, and the processes share the cells"
                )
            seed_everything(self.cell.seed)
            model = build_model(self.task, self.run.model).to(accelerator.device)
            with Journal(self.files.journal) as journal:
                try:
                    outcome = self._train(model, accelerator, journal)
                except NonFiniteError as error:
                    self._write(journal, {"steps": None, "valid": None, "better": "", "diverged": str(error)})
                    return
                self._write(journal, self._scores(model, outcome))
        finally:
            accelerator.free_memory()
            end_run(accelerator)

    def _train(self, model: nn.Module, accelerator: Accelerator, journal: Journal) -> Outcome:
        run = self.run
        start = {
            "cell": self.cell.title,
            "run": run.model_dump(mode="json"),
            "learning_rate": self.cell.rate,
            "seed": self.cell.seed,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "versions": versions(),
            "device": device_name(accelerator.device),
        }
        settings = training.RunSettings.of(
            run.train,
            steps=self.steps,
            optim=run.optim.model_copy(update={"learning_rate": self.cell.rate}),
            schedule=run.schedule,
            checkpoint=run.checkpoint,
        )
        return training.run(
            model,
            self._stream(accelerator),
            settings,
            self.files,
            journal,
            accelerator=accelerator,
            display=self.display,
            start=start,
            probes=[Probe("valid", run.score.every, self._validate)],
            count_items=None if isinstance(self.task, VectorTask) else _count_scored,
            enough=self._enough,
        )

    def _stream(self, accelerator: Accelerator) -> Stream:
        train = self.run.train
        micro_rows = train.micro_rows or train.batch_rows
        if isinstance(self.task, VectorTask):
            position = StepPosition(self.cell.seed)
            return DrawnStream(self.task, position, train.batch_rows, micro_rows=micro_rows, device=accelerator.device)
        # fresh rows: as many as the run can take, so that no row comes twice
        count = self.task.train_rows or self.steps * train.batch_rows
        rows = TokenRows(self.task, "train", self.cell.seed, count, keep=self.task.train_rows > 0)
        return RowStream(rows, Position(self.cell.seed), train.batch_rows, micro_rows=micro_rows, collate=collate_rows)

    def _score(self, model: nn.Module, split: str, rows: int, times: int = 1) -> Scored:
        settings, task = self.run.score, self.task
        if times > 1:
            assert isinstance(task, TokenTask)  # as the recipe has checked
            task = task.model_copy(update={"length": times * task.length})
        batch_rows = max(1, settings.batch_rows // times)
        return self.score(model, task, split, rows, seed=settings.seed, batch_rows=batch_rows)

    def _measures(self, model: nn.Module, test: Scored) -> list[dict[str, Any]]:
        """Return the statistics of the test rows, and those of longer rows under keys of their own."""
        found: list[dict[str, Any]] = test.plain()["measures"]
        for times in self.run.score.longer:
            rows = max(FEWEST_ROWS, self.run.score.test_rows // times)
            for measure in self._score(model, "test", rows, times).plain()["measures"]:
                key, label = f"{measure['key']}_{times}x", f"{measure['label']}, {times} times the length"
                found.append({**measure, "key": key, "label": label, "times": times})
        return found

    def _validate(self, model: nn.Module, step: int) -> list[dict[str, Any]]:
        self.valid = self._score(model, "valid", self.run.score.valid_rows)
        return [{"score": self.valid.value}]

    def _enough(self) -> bool:
        wanted = self.run.score.enough
        if wanted is None or self.valid is None:
            return False
        return self.valid.value <= wanted if self.valid.better == "lower" else self.valid.value >= wanted

    @torch.no_grad()
    def _scores(self, model: nn.Module, outcome: Outcome) -> dict[str, Any]:
        model.eval()
        valid = self._score(model, "valid", self.run.score.valid_rows)
        test = self._score(model, "test", self.run.score.test_rows)
        self.display.say(
            f"{self.cell.title}: {test.value:.4f} after {plural(outcome.step, 'step')}, {outcome.seconds:.0f} s"
        )
        return {
            "steps": outcome.step,
            "tokens": outcome.tokens,
            "seconds": outcome.seconds,
            "loss": outcome.loss,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "valid": valid.value,
            "better": valid.better,
            "score": test.value,
            "measures": self._measures(model, test),
        }

    def _write(self, journal: Journal, result: dict[str, Any]) -> None:
        journal.write("end", step=result["steps"], valid=result["valid"], score=result.get("score"))
        result = {"cell": self.cell.title, "learning_rate": self.cell.rate, "seed": self.cell.seed, **result}
        write_text(self.files.path / "result.json", json.dumps(result))
        shutil.rmtree(self.files.checkpoints, ignore_errors=True)


def _count_scored(batch: dict[str, torch.Tensor]) -> int:
    return int((batch["labels"] != NOT_SCORED).sum())


@contextmanager
def _claim(folder: Path) -> Iterator[bool]:
    """Try to lock a cell's folder and yield whether that succeeded; the lock ends with the block or the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / "lock"))
        except BlockingIOError:
            yield False
            return
        yield True
