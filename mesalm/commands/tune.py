"""Learn a soft prefix for a task."""

from __future__ import annotations

import argparse
from pathlib import Path

from mesalm.commands.words import MODEL, OVERRIDES, add_fields_help, folder_to_write


def add_tune(commands: argparse._SubParsersAction) -> None:
    """Add `mesalm tune`."""

    def fields() -> str:
        from mesalm.tuning.prompt_tuning import TuneSettings

        return "\n".join(
            f"{key} ({kind}) = {default}\n    {text}" for key, kind, default, text in TuneSettings.describe()
        )

    command = commands.add_parser(
        "tune", help="learn a soft prefix for few-shot tasks, the model frozen", add_help=False
    )
    add_fields_help(command, fields)
    command.add_argument("model", help=MODEL)
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=OVERRIDES)
    command.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="FILE",
        help="a few-shot file or a folder of them; may be given again: one prefix is learnt from all together",
    )
    command.add_argument(
        "--out",
        type=folder_to_write,
        help="folder to write to (default runs/NAME-TASK-prefix, of several runs/NAME-N-tasks-prefix)",
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    command.add_argument("--trust-remote-code", action="store_true", help="run code that lies with the model")
    command.set_defaults(run=tune)


def tune(options: argparse.Namespace) -> None:
    """Tune a prefix and say how to measure its gain."""
    from mesa_eval.reading.scoring import Scorer
    from mesa_eval.tuning_rows import tuning_rows, tuning_tasks
    from mesalm.files import writing
    from mesalm.tuning.prompt_tuning import tune_prefix, tune_settings

    settings = tune_settings(options.overrides)
    tasks = tuning_tasks(options.task, settings.seed)
    names = [task.name for task in tasks]
    scorer = Scorer.open(options.model, device=options.device, trust_remote_code=options.trust_remote_code)
    folder = (
        options.out or Path("runs") / f"{scorer.name}-{names[0] if len(names) == 1 else f'{len(names)}-tasks'}-prefix"
    )
    rows = tuning_rows(scorer, tasks, settings.shots, settings.rows, settings.seed)
    valid = tuning_rows(scorer, tasks, settings.shots, settings.valid_rows, settings.seed + 1)
    base = Path(scorer.source.load_from)
    record = {
        "base": str(base.absolute() if base.is_dir() else base),
        "tasks": {task.name: task.fingerprint() for task in tasks},
    }
    print(f"learning one prefix from {', '.join(names)}")
    loss = tune_prefix(scorer.model, rows, valid, settings, folder, record, device=options.device)
    with writing(folder):
        scorer.tokenizer.save_pretrained(folder)
    print(f"tuned: {folder}, {loss:.4f} nats a token of the answers")
    asked = " ".join(f"--task {name}" for name in options.task)
    print(f"its gain over plain shots: mesalm compare {folder} {options.model} {asked}")
