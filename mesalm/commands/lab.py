"""Test the claims of the mesa-optimisation paper."""

from __future__ import annotations

import argparse
from pathlib import Path

from mesalm.commands.words import chosen, count, file_to_write, folder_to_write, seed

HELP = "test the claims of the mesa-optimisation paper"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `mesalm lab` and their arguments."""
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show every claim and its criteria")
    listing.set_defaults(act=show)
    running = actions.add_parser("run", help="run claims; trained nets are saved and reused")
    running.add_argument(
        "claims",
        nargs="+",
        metavar="CLAIM",
        help="names or numbers of claims, all, or names of studies; a Python file with your own claims; sizes to "
        "change, as key=YAML value",
    )
    running.add_argument("--without", nargs="+", default=[], metavar="CLAIM", help="claims to leave out")
    running.add_argument("--seeds", type=count, default=1, help="seeds to average over (default 1)")
    running.add_argument("--first-seed", type=seed, default=0, help="the first seed (default 0)")
    running.add_argument("--nets", type=folder_to_write, default=Path("runs/lab"), help="folder of trained nets")
    running.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    running.add_argument("--missing", action="store_true", help="skip claims that have a result with these seeds")
    running.add_argument(
        "--cheapest-first", action="store_true", help="run the cheapest claims first, in the order of --plan"
    )
    running.add_argument("--plan", action="store_true", help="only print the trainings, time and memory of each claim")
    running.set_defaults(act=run_some)
    reporting = actions.add_parser("report", help="write one page with every claim and its verdict")
    reporting.add_argument("--page", type=file_to_write, help="the file to write (default: next to the results)")
    reporting.add_argument("--claims", type=Path, help="a Python file with your own claims (default: the paper's)")
    reporting.set_defaults(act=report)
    for action in (running, reporting):
        action.add_argument("--size", choices=("small", "paper"), default="small", help="sizes (default small)")
        action.add_argument("--out", type=folder_to_write, default=Path("reports/lab"), help="folder of the results")


def run(options: argparse.Namespace) -> int | None:
    """Run the chosen action; return 1 if a claim failed."""
    code: int | None = options.act(options)
    return code


def show(options: argparse.Namespace) -> None:
    """Print every claim."""
    from mesalm.lab.claim_runs import list_claims

    list_claims()


def run_some(options: argparse.Namespace) -> int:
    """Run claims and print their verdicts, or their plan; return 1 if a claim failed."""
    from mesalm.lab.claim_runs import plan_claims, run_claims
    from mesalm.lab.claims import TABLE
    from mesalm.settings import SettingsError
    from mesalm.train.overrides import parse_override

    changes = dict(parse_override(word) for word in options.claims if "=" in word)
    files = [Path(word) for word in options.claims if word.endswith(".py") and "=" not in word]
    names = [word for word in options.claims if "=" not in word and not word.endswith(".py")]
    if len(files) > 1:
        raise SettingsError(f"{files[1]}: only one file of claims can be run at once")
    own = chosen(options, "size", "seeds", "first_seed", "without", "nets", "device")
    own |= {"changes": changes, "file": files[0] if files else TABLE}
    if options.plan:
        print(*plan_claims(names or ["all"], **own).lines(), sep="\n")
        return 0
    own |= chosen(options, "out", "missing", "cheapest_first")
    outcomes = run_claims(names or ["all"], **own, traces=options.traceback)
    return int(None in outcomes.values())


def report(options: argparse.Namespace) -> None:
    """Write the report page."""
    from mesalm.lab.claims import TABLE
    from mesalm.lab.claims_page import write_page

    print(f"report: {write_page(options.out, options.size, options.page, file=options.claims or TABLE)}")
