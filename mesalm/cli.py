"""The doors of the house: each parses its arguments and hands them to the room that does the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

MODEL = "a run folder, a saved or published model's folder, or a name on the Hub"
OVERRIDES = "settings to change, as dotted.key=YAML value, for instance optim.learning_rate=1e-3"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one door and return the process's exit code: 0 done, 2 bad input, 130 interrupted."""
    options = parse(arguments)
    try:
        return int(options.door(options) or 0)
    except (ValueError, FileNotFoundError) as error:
        if options.traceback:
            raise
        print(f"mesalm {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mesalm {options.command}: interrupted", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; settings and models may also follow options, which argparse alone does not allow."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    listed = getattr(options, "overrides", getattr(options, "models", None))
    if rest and (listed is None or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if listed is not None:
        listed.extend(rest)
    return options


def parser() -> argparse.ArgumentParser:
    """Build the parser of all doors."""
    top = argparse.ArgumentParser(prog="mesalm", description="Pretrain small language models with mesa attention.")
    doors = top.add_subparsers(dest="command", required=True, metavar="DOOR")
    _prepare_door(doors)
    _train_door(doors)
    _sample_door(doors)
    _eval_door(doors)
    _compare_door(doors)
    _inspect_door(doors)
    _publish_door(doors)
    for door in doors.choices.values():
        door.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return top


def _prepare_door(doors: argparse._SubParsersAction) -> None:
    door = doors.add_parser("prepare", help="turn a recipe's text into packed rows of tokens")
    door.add_argument("recipe", help="a YAML file or the name of a packaged recipe")
    door.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    door.set_defaults(door=prepare)


def prepare(options: argparse.Namespace) -> None:
    """Prepare a recipe's data and say what came out."""
    from mesalm.data.prepare import prepare as prepare_data
    from mesalm.train.recipe import load_recipe

    prepared = prepare_data(load_recipe(options.recipe, options.overrides).data)
    print(prepared.summary())


def _train_door(doors: argparse._SubParsersAction) -> None:
    class WithFields(argparse.Action):
        """Print the help of every recipe field after the door's own; made only when asked for."""

        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            from mesalm.train.recipe import help_text

            parser.print_help()
            print("\nrecipe fields:\n" + help_text())
            parser.exit()

    door = doors.add_parser("train", help="train a recipe's model, or each of its arms", add_help=False)
    door.add_argument("-h", "--help", nargs=0, action=WithFields, help="show this message and every recipe field")
    door.add_argument("recipe", help="a YAML file or the name of a packaged recipe")
    door.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    door.add_argument("--arm", action="append", metavar="NAME", help="train this arm only; may be given again")
    door.add_argument(
        "--resume",
        choices=("auto", "must", "never"),
        default="auto",
        help="go on from this run's newest checkpoint: auto if there is one, must, or never (sets the old run aside)",
    )
    door.set_defaults(door=train)


def train(options: argparse.Namespace) -> None:
    """Train a recipe, every arm of it in turn."""
    from mesalm.train.guard import NonFiniteGradientError
    from mesalm.train.pretrain import pretrain
    from mesalm.train.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    for arm in options.arm or list(recipe.arms) or [None]:
        run = load_recipe(options.recipe, options.overrides, arm=arm)
        try:
            print(f"trained: {pretrain(run, resume=options.resume)}")
        except NonFiniteGradientError as error:
            raise SystemExit(f"mesalm train: {error}") from None


def _sample_door(doors: argparse._SubParsersAction) -> None:
    door = doors.add_parser("sample", help="continue a prompt")
    door.add_argument("model", help=MODEL)
    door.add_argument("--prompt", default="", help="the text to continue")
    door.add_argument("--tokens", type=int, default=200, help="most tokens to add (default 200)")
    door.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    door.add_argument("--top-p", type=float, default=0.95, help="share of probability to sample from (default 0.95)")
    door.add_argument("--seed", type=int, default=0)
    door.add_argument("--device", default="cpu")
    door.add_argument("--trust-remote-code", action="store_true", help="run code that lies with the model")
    door.set_defaults(door=sample)


def sample(options: argparse.Namespace) -> None:
    """Print a continuation as it is made."""
    from mesalm.hub.sample import sample as continue_prompt

    continue_prompt(
        options.model,
        options.prompt,
        tokens=options.tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )


def _evaluation_arguments(door: argparse.ArgumentParser) -> None:
    door.add_argument("models", nargs="+", metavar="MODEL", help=MODEL)
    door.add_argument("--suite", choices=("quick", "full"), default="quick", help="how much to measure (default quick)")
    door.add_argument("--text", action="append", default=[], metavar="FILE", help="held-out text; may be given again")
    door.add_argument("--split", choices=("valid", "test"), default="valid", help="of a run's own text (default valid)")
    door.add_argument("--task", action="append", default=[], metavar="FILE", help="a few-shot file; may be given again")
    door.add_argument("--out", type=Path, help="folder to write to")
    door.add_argument("--seed", type=int, default=0)
    door.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    door.add_argument("--batch-tokens", type=int, default=8192, help="tokens a forward pass (default 8192)")
    door.add_argument("--trust-remote-code", action="store_true", help="run code that lies with a model")


def _eval_door(doors: argparse._SubParsersAction) -> None:
    door = doors.add_parser("eval", help="measure models: perplexity, loss by position, copying, few-shot tasks")
    _evaluation_arguments(door)
    door.set_defaults(door=evaluate)


def evaluate(options: argparse.Namespace) -> None:
    """Measure each model and print a table."""
    from mesa_eval.suite import evaluate as evaluate_models

    evaluate_models(
        options.models,
        options.suite,
        texts=options.text,
        split=options.split,
        tasks=options.task,
        out=options.out,
        seed=options.seed,
        device=options.device,
        batch_tokens=options.batch_tokens,
        trust_remote_code=options.trust_remote_code,
    )


def _compare_door(doors: argparse._SubParsersAction) -> None:
    door = doors.add_parser("compare", help="measure models on the same items and report the differences")
    _evaluation_arguments(door)
    door.add_argument("--baseline", metavar="MODEL", help="the model the others are compared with (default: the last)")
    door.set_defaults(door=compare)


def compare(options: argparse.Namespace) -> None:
    """Measure models on the same items, print the differences and write the report."""
    from mesa_eval.compare import compare as compare_models

    page = compare_models(
        options.models,
        options.suite,
        texts=options.text,
        split=options.split,
        tasks=options.task,
        out=options.out,
        seed=options.seed,
        device=options.device,
        batch_tokens=options.batch_tokens,
        trust_remote_code=options.trust_remote_code,
        baseline=options.baseline,
    )
    print(f"report: {page}")


def _inspect_door(doors: argparse._SubParsersAction) -> None:
    door = doors.add_parser("inspect", help="measure a model's gates and how hard its mesa layers are to solve")
    door.add_argument("model", help=MODEL)
    door.add_argument("--text", action="append", default=[], metavar="FILE", help="held-out text; may be given again")
    door.add_argument("--tokens", type=int, default=2048, help="how much text to read (default 2048)")
    door.add_argument("--length", type=int, help="tokens of a window (default: as the run was trained, else 512)")
    door.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    door.add_argument("--out", type=Path, help="folder to write to (default reports/inspect-NAME)")
    door.add_argument("--record", type=Path, metavar="FILE", help="write the first window's operands, as safetensors")
    door.add_argument("--record-heads", metavar="LAYER.HEAD,...", help="key heads to record (default all)")
    door.add_argument("--trust-remote-code", action="store_true", help="run code that lies with the model")
    door.set_defaults(door=inspect)


def inspect(options: argparse.Namespace) -> None:
    """Print a model's gates and condition numbers and draw them."""
    from mesalm.lab.inspection import inspect_model

    inspect_model(
        options.model,
        texts=options.text,
        tokens=options.tokens,
        length=options.length,
        device=options.device,
        out=options.out,
        record=options.record,
        record_heads=options.record_heads,
        trust_remote_code=options.trust_remote_code,
    )


def _publish_door(doors: argparse._SubParsersAction) -> None:
    door = doors.add_parser("publish", help="write a folder that any process with transformers can load")
    door.add_argument("model", help="a run folder or a saved model's folder")
    door.add_argument("folder", type=Path, help="a new folder")
    door.set_defaults(door=publish)


def publish(options: argparse.Namespace) -> None:
    """Publish a model."""
    from mesalm.hub.publish import publish as publish_model

    print(f"published: {publish_model(options.model, options.folder)}")
