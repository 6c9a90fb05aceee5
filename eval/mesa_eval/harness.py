"""Run lm-evaluation-harness on a run, a model folder or a Hub name.

    python -m mesa_eval.harness run --model mesalm --model_args pretrained=runs/NAME \
        --tasks TASK --include_path FOLDER_WITH_TASK_YAML --device cpu --batch_size 4

accepts every argument of `lm_eval`. It registers the model type "mesa" (so no `trust_remote_code` is needed)
and adds the model `mesalm`: the harness's own `hf` model, with the start token before every context, as in
training and in `mesa_eval.reading.scoring`, and without an error of `hf` on requests that split one text at two places.
Published folders also work with plain
`lm_eval run --model hf --model_args pretrained=DIR,trust_remote_code=True,add_bos_token=True,logits_cache=False`, but
for tasks of kind `loglikelihood_rolling`, where the harness itself puts the start token: say `add_bos_token=False`.
Without a network set HF_HUB_OFFLINE=1, HF_DATASETS_OFFLINE=1 and TRANSFORMERS_OFFLINE=1, and name a local task:
`dataset_path: json` with `dataset_kwargs: {data_files: {test: /path/to/file.jsonl}}`.

Needs the extra `eval` (`pip install mesalm[eval]`).
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import mesalm  # noqa: F401  (registers the model type "mesa")
from mesa_eval.reading.model_source import find_model
from mesalm.pretrained import opening

if TYPE_CHECKING:
    import torch

MODEL_NAME = "mesalm"


@cache
def register() -> type:
    """Add the model `mesalm` to the harness and return its class; ValueError without lm_eval."""
    try:
        from lm_eval.api.registry import register_model
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":  # lm_eval is there, and lacks something itself
            raise
        raise ValueError(
            "lm-evaluation-harness is not installed; install it with pip install 'mesalm[eval]'"
        ) from error

    class StartTokenLM(HFLM):
        """The harness's `hf` model on plain text, with the start token before every context."""

        _whole_documents = False

        def __init__(self, pretrained: Any, *arguments: Any, **options: Any) -> None:
            if not isinstance(pretrained, str):
                super().__init__(pretrained, *arguments, **options)
                return
            folder = find_model(pretrained).load_from
            with opening(folder, "model", pretrained):
                super().__init__(folder, *arguments, **options)

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **options: Any,
        ) -> list[int]:
            ids = self.tokenizer.encode(string, add_special_tokens=False, split_special_tokens=True)
            # Whole documents get their start token from the harness itself.
            if add_special_tokens is not False and not self._whole_documents:
                ids = [self.prefix_token_id, *ids]
            return list(ids[-left_truncate_len:] if left_truncate_len else ids)

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
            batch = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
            return batch["input_ids"], batch["attention_mask"]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            self._whole_documents = True
            try:
                found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
            finally:
                self._whole_documents = False
            return found

        def _loglikelihood_tokens(self, requests: list[Any], *arguments: Any, **options: Any) -> list[Any]:
            # The harness reads requests of the same tokens once, and of those that end in a shorter continuation it
            # scores the wrong positions (lm_eval 0.4.13). Such requests get a pass of their own.
            lengths: dict[tuple[int, ...], int] = {}
            later = [
                place
                for place, (_, context, ending) in enumerate(requests)
                if lengths.setdefault((*context, *ending[:-1]), len(ending)) != len(ending)
            ]
            found: list[Any] = [None] * len(requests)
            for chosen in (sorted(set(range(len(requests))) - set(later)), later):
                if chosen:
                    again = self._loglikelihood_tokens if chosen is later else super()._loglikelihood_tokens
                    answers = again([requests[place] for place in chosen], *arguments, **options)
                    for place, answer in zip(chosen, answers, strict=True):
                        found[place] = answer
            return found

    register_model(MODEL_NAME)(StartTokenLM)
    return StartTokenLM


def main() -> None:
    """Run the harness's command line with the model `mesalm` registered; print our errors as one line."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except ValueError as error:
        print(f"mesa_eval.harness: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
