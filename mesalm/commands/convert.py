"""Turn a softmax checkpoint into one with mesa layers."""

from __future__ import annotations

import argparse

from mesalm.commands.words import add_overrides, chosen, count, folder_to_write, refuse_beside, seed

HELP = "swap a checkpoint's softmax attention for mesa layers"


def arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `mesalm convert`."""
    command.add_argument(
        "model",
        help="a Llama or Qwen3 checkpoint, a MesaNet or gated delta net of flash-linear-attention, or a model of "
        "mesalm: a folder or Hub name",
    )
    command.add_argument("folder", type=folder_to_write, help="a new folder")
    command.add_argument(
        "--layers", default="all", help="layers to swap: all, none, or numbers from 0 such as 1,3 or 0-5 or every-2"
    )
    text = "the new mixer: mesa, delta, kalman, linear or your own (default mesa)"
    command.add_argument("--mixer", default="mesa", help=text)
    command.add_argument(
        "--calibrate",
        action="append",
        default=[],
        metavar="FILE",
        help="text to fit the new layers to; may be repeated (default: text sampled from the model)",
    )
    command.add_argument("--tokens", type=count, help="tokens to fit to (default 8192, more for wide models)")
    command.add_argument(
        "--seed", type=seed, default=0, help="what new weights and sampled text are drawn with (default 0)"
    )
    command.add_argument(
        "--recover",
        metavar="RECIPE",
        help="then train the converted model with this recipe to match the original's predictions; key=value changes "
        "the recipe, and the same command resumes an interrupted training",
    )
    add_overrides(command)
    command.add_argument(
        "--to", choices=("fla",), help="write a mesa or delta model in flash-linear-attention's format"
    )


def run(options: argparse.Namespace) -> None:
    """Convert a model and, with --recover, train it further."""
    from mesalm.hub.carry_over import open_softmax_model
    from mesalm.hub.convert import convert, is_conversion
    from mesalm.hub.peers import write_peer
    from mesalm.train.distil import Distillation, recovery_recipe
    from mesalm.train.pretrain import pretrain

    if options.overrides and options.recover is None:
        raise ValueError(
            f"{options.overrides[0]}: only changes the recipe of --recover; add --recover, or leave it out"
        )
    if options.to is not None:
        refuse_beside(options, "--to", "layers", "mixer", "calibrate", "tokens", "seed", "recover")
        print(f"converted: {write_peer(options.model, options.folder)}")
        return
    asked = chosen(options, "layers", "mixer", "calibrate", "tokens", "seed")
    if options.recover is None:
        print(f"converted: {convert(options.model, options.folder, **asked)}")
        return
    recipe = recovery_recipe(options.recover, options.overrides, options.folder)
    if not is_conversion(options.folder, options.model, **asked):
        print(f"converted: {convert(options.model, options.folder, **asked)}")
    print(f"recovered: {pretrain(recipe, train=Distillation(open_softmax_model(options.model)))}")
