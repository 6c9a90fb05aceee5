"""The sections of a recipe; each field's description is its line in ``--help``."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import Field, field_validator

from mesalm.settings import LEAST_TEMPERATURE, Settings

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


class TrainSettings(Settings):
    """The length of the run, batch sizes and precision."""

    tokens: int | None = Field(
        default=None, gt=0, description="Tokens to train on, rounded up to whole steps; give this or train.steps."
    )
    steps: int | None = Field(default=None, gt=0, description="Optimiser steps; give this or train.tokens.")
    batch_rows: int = Field(
        default=32, gt=0, description="Rows per optimiser step, over all processes and micro-batches."
    )
    ramp_tokens: int = Field(
        default=0,
        ge=0,
        description="Initial tokens during which the batch size ramps up: a quarter of batch_rows for the first third "
        "of them, then a half, then three quarters.",
    )
    micro_rows: int | None = Field(
        default=None,
        gt=0,
        description="Rows per micro-batch of one process; none: its share of a step (of a ramp's first step).",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="fp32, or bf16 autocast with weights and optimiser in fp32; auto: the --mixed_precision of "
        "accelerate launch, else fp32.",
    )
    clip: float | None = Field(
        default=1.0, gt=0, description="Maximum global norm of the gradient; larger ones are scaled down. none: off."
    )
    logits_at_once: int = Field(
        default=2**28,
        gt=0,
        description="Maximum logits in memory; more are computed in parts, and recomputed in the backward pass.",
    )
    z_loss: float = Field(
        default=0.0, ge=0, description="Weight of the z-loss: the mean squared log of the softmax's normaliser."
    )
    average: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of a running average of the weights, also validated, saved in final-average; none: off.",
    )
    device: Literal["auto", "cpu"] = Field(
        default="auto", description="auto: the accelerator if there is one; cpu: the CPU, also for several processes."
    )
    compile: bool | Literal["blocks"] = Field(
        default=False,
        description="true: compile the model with torch.compile; blocks: compile one block of each kind, which takes "
        "as long as compiling one layer.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Whether to recompute activations in the backward pass to save memory."
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="Processes that read rows in advance; 0: read in the loop. A streamed corpus needs none.",
    )
    log_every: int = Field(
        default=10, gt=0, description="Steps between lines in the journal and in a log, with means since the last line."
    )
    max_skipped: int = Field(
        default=10,
        gt=0,
        description="Consecutive steps with a loss or gradient that is not finite after which the run stops.",
    )
    spikes: Literal["accept", "skip", "rollback", "stop"] = Field(
        default="accept",
        description="What to do if the loss is far above the last ones: accept: update the weights; skip: skip the "
        "step; rollback: return weights, average and optimiser to the last checkpoint, but not the data; "
        "stop: end the run.",
    )
    timeout: float = Field(
        default=30.0,
        ge=1,
        description="Seconds without a heartbeat after which one of several processes counts as lost and all end. "
        "Slow steps and long saves do not matter.",
    )

    def _check(self) -> None:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give exactly one of tokens and steps")
        if self.ramp_tokens and self.batch_rows % 4:
            raise ValueError(f"batch_rows: {self.batch_rows} must be a multiple of 4 with train.ramp_tokens")


class ParallelismSettings(Settings):
    """Parallelism beyond data parallelism."""

    context: int = Field(
        default=1, gt=0, description="Processes that split each row among them (context parallelism); 1: none."
    )


class ValidateSettings(Settings):
    """Validation during training."""

    every: int = Field(default=100, ge=0, description="Steps between validations; 0: only after the last step.")
    rows: int = Field(default=256, ge=0, description="Rows of the validation split to score, evenly spaced; 0: all.")


class SampleSettings(Settings):
    """Text samples during training."""

    every: int = Field(default=0, ge=0, description="Steps between samples, the last step included; 0: never.")
    prompts: list[str] = Field(default_factory=lambda: ["def "], description="Prompts to continue.")
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
    """Few-shot tasks and copying during training, measured as in `mesalm eval`."""

    every: int = Field(default=0, ge=0, description="Steps between evaluations, the last step included; 0: never.")
    tasks: list[str] = Field(
        default_factory=lambda: ["word_labels"],
        description="Few-shot tasks, named as in mesalm eval --task; copying of random tokens is always measured.",
    )
    prompts: int = Field(
        default=10,
        gt=0,
        description="Items per task, the first ones of suite quick; word labels and rules have four times as many.",
    )


class CheckpointSettings(Settings):
    """How often checkpoints are written, and how many are kept."""

    every: int = Field(
        default=500, ge=0, description="Steps between checkpoints; 0: only on interruption and at the end."
    )
    keep: int = Field(default=2, gt=0, description="Number of newest checkpoints to keep.")
    asynchronous: bool = Field(
        default=False, description="Whether a run sharded by FSDP writes checkpoints in the background."
    )


class UploadSettings(Settings):
    """Checkpoint uploads to the Hub during training."""

    to: str | None = Field(
        default=None,
        description="Hub repository, OWNER/NAME, to upload checkpoints to, tagged step-N; none: off.",
    )
    every: int = Field(
        default=0, ge=0, description="Steps between uploads, a multiple of checkpoint.every; 0: each checkpoint."
    )
    private: bool = Field(default=True, description="Whether a newly created repository is private.")

    @field_validator("to")
    @classmethod
    def _a_name_on_the_hub(cls, to: str | None) -> str | None:
        if to is not None:
            try:
                validate_repo_id(to)
            except HFValidationError as error:
                raise ValueError(
                    f"{to!r} is not a valid name on the Hub ({str(error).split('. ')[0].splitlines()[0]})"
                ) from None
        return to
