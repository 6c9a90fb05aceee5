"""The sections of a recipe; each field's description is its line in ``--help``."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import Field, field_validator

from mesalm.settings import LEAST_TEMPERATURE, Settings

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


class TrainSettings(Settings):
    """The length of the run, its batches and its arithmetic."""

    tokens: int | None = Field(
        default=None, gt=0, description="Tokens to train on, rounded up to whole steps; give this or train.steps."
    )
    steps: int | None = Field(default=None, gt=0, description="Optimiser steps; give this or train.tokens.")
    batch_rows: int = Field(
        default=32, gt=0, description="Rows of one optimiser step, over all processes and micro-batches together."
    )
    ramp_tokens: int = Field(
        default=0,
        ge=0,
        description="First tokens over which a step grows: a quarter of batch_rows for a third of them, then a half, "
        "then three quarters.",
    )
    micro_rows: int | None = Field(
        default=None,
        gt=0,
        description="Rows one process runs at once; none: its whole share of a step, the first of a ramp.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="fp32, or bf16 autocast with weights and optimiser kept in fp32; auto: what accelerate launch "
        "--mixed_precision says, else fp32.",
    )
    clip: float | None = Field(
        default=1.0, gt=0, description="Largest global norm of the gradient; longer ones are scaled down. none: off."
    )
    logits_at_once: int = Field(
        default=2**28,
        gt=0,
        description="Logits held at once; those of a longer batch are made in parts, and again in the backward pass.",
    )
    z_loss: float = Field(
        default=0.0, ge=0, description="Weight of the mean squared logarithm of the softmax's divisor in the loss."
    )
    average: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of a running average of the weights, validated too and written to final-average; none: off.",
    )
    device: Literal["auto", "cpu"] = Field(
        default="auto", description="auto: the accelerator if there is one; cpu: never (also for several processes)."
    )
    compile: bool | Literal["blocks"] = Field(
        default=False,
        description="true: run the model through torch.compile; blocks: each of its blocks, those of one kind by one "
        "code, which is compiled in the time of a layer.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Whether to recompute activations in the backward pass to save memory."
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="Processes that read rows ahead of the loop; 0: read in the loop. A streamed corpus needs none.",
    )
    log_every: int = Field(
        default=10, gt=0, description="Steps between step lines in the journal and in a log (means since the last)."
    )
    max_skipped: int = Field(
        default=10,
        gt=0,
        description="Steps in a row with a loss or gradient that is not finite after which the run stops.",
    )
    spikes: Literal["accept", "skip", "rollback", "stop"] = Field(
        default="accept",
        description="What a loss far above the last ones does: accept: it updates the weights; skip: the step is left "
        "out; rollback: weights, average and optimiser go back to the last checkpoint, the data on; "
        "stop: the run ends.",
    )
    timeout: float = Field(
        default=30.0,
        ge=1,
        description="Seconds without a sign of life after which one of several processes counts as lost, and all end. "
        "A slow step or a long save does not count.",
    )

    def _check(self) -> None:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give exactly one of tokens and steps")
        if self.ramp_tokens and self.batch_rows % 4:
            raise ValueError(f"batch_rows: {self.batch_rows} must be a multiple of 4 where train.ramp_tokens is given")


class ParallelismSettings(Settings):
    """Describe what several processes do together, beside reading rows of their own."""

    context: int = Field(
        default=1, gt=0, description="Processes that share each row, one stretch of it each; 1: each reads whole rows."
    )


class ValidateSettings(Settings):
    """Validation while training."""

    every: int = Field(default=100, ge=0, description="Steps between validations; 0: only after the last step.")
    rows: int = Field(default=256, ge=0, description="Rows of the validation split to score, evenly spaced; 0: all.")


class SampleSettings(Settings):
    """The texts sampled while training."""

    every: int = Field(default=0, ge=0, description="Steps between samples, the last step included; 0: never.")
    prompts: list[str] = Field(default_factory=lambda: ["def "], description="Beginnings to be continued.")
    tokens: int = Field(default=48, gt=0, description="Tokens to generate for each prompt.")
    temperature: float = Field(default=0.8, ge=0, description="Sampling temperature; 0: always the likeliest token.")

    @field_validator("temperature")
    @classmethod
    def _cannot_overflow(cls, temperature: float) -> float:
        if 0 < temperature < LEAST_TEMPERATURE:
            raise ValueError(f"must be 0 or at least {LEAST_TEMPERATURE}, not {temperature}")
        return temperature

    def _check(self) -> None:
        if self.every and not self.prompts:
            raise ValueError("prompts: is empty; name at least one, or set sample.every=0")


class EvaluateSettings(Settings):
    """Few-shot tasks and copying while training, by the measures of `mesalm eval`."""

    every: int = Field(default=0, ge=0, description="Steps between evaluations, the last step included; 0: never.")
    tasks: list[str] = Field(
        default_factory=lambda: ["word_labels"],
        description="Few-shot tasks, as mesalm eval --task names them; copying of random tokens is always measured.",
    )
    prompts: int = Field(default=10, gt=0, description="Items of each task, the first of suite quick.")


class CheckpointSettings(Settings):
    """How often checkpoints are written, and how many are kept."""

    every: int = Field(
        default=500, ge=0, description="Steps between checkpoints; 0: only on interruption and at the end."
    )
    keep: int = Field(default=2, gt=0, description="Newest checkpoints to keep; older ones are deleted.")
    asynchronous: bool = Field(
        default=False, description="Whether a run sharded by FSDP goes on training while a checkpoint is written."
    )


class UploadSettings(Settings):
    """Checkpoints on the Hub while training."""

    to: str | None = Field(
        default=None,
        description="Repository on the Hub, OWNER/NAME, that gets checkpoints on the way, tagged step-N; none: off.",
    )
    every: int = Field(
        default=0, ge=0, description="Steps between them, a multiple of checkpoint.every; 0: each checkpoint."
    )
    private: bool = Field(default=True, description="Whether the repository is private, if it has to be made.")

    @field_validator("to")
    @classmethod
    def _a_name_on_the_hub(cls, to: str | None) -> str | None:
        if to is not None:
            try:
                validate_repo_id(to)
            except HFValidationError as error:
                raise ValueError(
                    f"{to!r} is no name on the Hub ({str(error).split('. ')[0].splitlines()[0]})"
                ) from None
        return to
