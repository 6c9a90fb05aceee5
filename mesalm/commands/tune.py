"""Learn a soft prefix for a task."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mesalm.commands.words import MODEL, add_device, add_overrides, folder_to_write
from mesalm.settings import help_lines
from mesalm.wording import plural

HELP = "learn a soft prefix for few-shot tasks, with the model frozen"


def fields() -> str:
    """Return the description of every setting of prefix tuning."""
    from mesalm.tuning.prompt_tuning import TuneSettings

    return help_lines(TuneSettings.describe())


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm tune`."""
    command.add_argument("model", help=MODEL)
    add_overrides(command)
    command.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="TASK",
        help="a few-shot file, a folder of them, or a built-in task of episodes, such as attribute_rules; if repeated, "
        "one prefix is learned for all tasks together",
    )
    command.add_argument(
        "--out",
        type=folder_to_write,
        help="folder to write to (default runs/NAME-TASK-prefix, for several tasks runs/NAME-N-tasks-prefix)",
    )
    add_device(command)


def run(options: argparse.Namespace) -> None:
    """Learn a prefix and print the command that measures its gain."""
    from mesa_eval.reading.scoring import Scorer
    from mesa_eval.tuning_rows import tuning_rows, tuning_tasks
    from mesalm.hub.open_model import refuse_prefix
    from mesalm.tuning.prompt_tuning import tune_prefix, tune_settings

    settings = tune_settings(options.overrides)
    refuse_prefix(options.model)
    tasks = tuning_tasks(options.task, settings.seed)
    names = [task.name for task in tasks]
    scorer = Scorer.open(options.model, device=options.device, trust_remote_code=options.trust_remote_code)
    folder = (
        options.out or Path("runs") / f"{scorer.name}-{names[0] if len(names) == 1 else f'{len(names)}-tasks'}-prefix"
    )
    window = max(1, scorer.max_length - settings.vectors)
    rows = tuning_rows(scorer, tasks, settings.shots, settings.rows, settings.seed, window=window)
    valid = tuning_rows(scorer, tasks, settings.shots, settings.valid_rows, settings.seed + 1, window=window)
    base = Path(scorer.source.load_from)
    record = {
        "base": str(base.absolute() if base.is_dir() else base),
        "tasks": {task.name: task.fingerprint() for task in tasks},
    }
    print(f"learning one prefix from {', '.join(names)}")
    left = settings.rows + settings.valid_rows - len(rows) - len(valid)
    if left:
        print(f"{plural(left, 'prompt exceeds', 'prompts exceed')} the window of {window} tokens: left out")
    save_tokenizer = scorer.tokenizer.save_pretrained
    loss = tune_prefix(
        scorer.model, rows, valid, settings, folder, record, device=options.device, decorate=save_tokenizer
    )
    print(f"tuned: {folder}, {loss:.4f} nats per token of the answers")
    asked = [word for name in options.task for word in ("--task", name)]
    print(f"to measure its gain: {shlex.join(['mesalm', 'compare', str(folder), options.model, *asked])}")
