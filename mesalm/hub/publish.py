"""Write a folder that any process with transformers can load."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from transformers import AutoConfig, PreTrainedModel

import mesalm.model
from mesalm.data.bpe import add_start_token
from mesalm.files import write_text
from mesalm.hub.licences import check_licence
from mesalm.hub.model_card import Evaluation, model_card, read_conversion
from mesalm.hub.new_folder import must_be_new, new_folder
from mesalm.hub.open_model import locate, open_model, open_tokenizer, refuse_prefix
from mesalm.model.classifier_mesa import MesaForSequenceClassification
from mesalm.model.configuration_mesa import MesaConfig
from mesalm.model.mixers import MIXERS, OURS
from mesalm.pretrained import load, load_model
from mesalm.runs import resolve

AUTO_MAP = {
    "AutoConfig": "configuration_mesa.MesaConfig",
    "AutoModel": "modeling_mesa.MesaModel",
    "AutoModelForCausalLM": "modeling_mesa.MesaForCausalLM",
    "AutoModelForSequenceClassification": "classifier_mesa.MesaForSequenceClassification",
}


def publish(
    model: str,
    folder: str | Path,
    *,
    licence: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    push_to: str | None = None,
    private: bool = False,
) -> Path:
    """Write weights (safetensors), tokenizer, model card and remote code of MODEL to `folder`; return that path.

    The code is a copy of this package's model folder, so that
    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works without mesalm.

    Args:
        model: a run folder or a saved mesa model's folder.
        folder: a path that does not exist yet, or an empty folder.
        licence: see `model_card`.
        evaluations: measured values for the card.
        push_to: a Hub repository, "owner/name", to upload the folder to; created if it does not exist. None: no upload.
        private: whether a newly created repository is private.

    Raises:
        ValueError: the model is not a mesa model, the Hub does not know the licence, `folder` is not empty, or the
            upload fails; the folder then remains, and can be uploaded again.
    """
    folder = Path(folder)
    if licence is not None:
        check_licence(licence)
    must_be_new(folder, "publish")
    refuse_prefix(model)
    source = resolve(model)
    opened = _open(model)
    tokenizer = open_tokenizer(model)
    run = source.finished_run
    if run is not None and (tokenizer.bos_token_id, tokenizer.eos_token_id) != (None, None):
        add_start_token(tokenizer)
    card = model_card(
        opened,
        (push_to or folder.name).split("/")[-1],
        None if run is None else run.path,
        place=push_to,
        licence=licence,
        evaluations=evaluations,
        conversion=read_conversion(Path(source.load_from)),
    )
    with new_folder(folder, "publish") as staged:
        opened.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        add_code(staged)
        (staged / "README.md").write_text(card, encoding="utf-8")
    if push_to is not None:
        push(folder, push_to, private=private)
    return folder


def _open(model: str) -> PreTrainedModel:
    """Open MODEL with the head it was saved with."""
    config = load(AutoConfig, locate(model), "model", name=model)
    if not isinstance(config, MesaConfig):
        raise ValueError(f"{model}: model_type is {config.model_type!r}; only mesa models need remote code")
    if MesaForSequenceClassification.__name__ in (config.architectures or []):
        classifier: PreTrainedModel = load_model(MesaForSequenceClassification, locate(model), name=model, dtype="auto")
        return classifier
    return open_model(model)


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a published folder to the Hub and return the commit's address.

    Raises:
        ValueError: the Hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        place = api.create_repo(name, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=place, folder_path=folder, commit_message="Publish model"))
    except (HfHubHTTPError, HFValidationError, OSError, OfflineModeIsEnabled) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{name}: {folder} could not be uploaded ({first})") from None


def add_code(folder: Path) -> None:
    """Copy the flat model folder beside the weights and name its classes in config.json, which is replaced.

    Files of registered mixers are copied too: their imports from mesalm.model become relative, and `mixers.py` imports
    them. Raises ValueError for such a file that could not be loaded there.
    """
    for place in mesalm.model.__path__:
        for file in sorted(Path(place).glob("*.py")):
            if file.name != "__init__.py":
                shutil.copyfile(file, folder / file.name)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = AUTO_MAP
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    names = [config["mixers"]] if isinstance(config["mixers"], str) else config["mixers"]
    for build in {MIXERS[name].build for name in names if name not in OURS}:
        _add_mixer(folder, build)


def _add_mixer(folder: Path, build: type) -> None:
    try:
        file = Path(inspect.getfile(build))
    except (OSError, TypeError):
        raise ValueError(f"{build.__name__}: has no file to publish; write the class into a file") from None
    if not file.stem.isidentifier() or (folder / file.name).exists():
        raise ValueError(f"{file}: cannot lie beside the model's code under this name; rename it, such as my_mixer.py")
    code = re.sub(r"^(\s*from )mesalm\.model(?=\.)", r"\1", file.read_text("utf-8"), flags=re.MULTILINE)
    if found := re.search(r"^\s*(?:from|import) mesalm.*", code, re.MULTILINE):
        raise ValueError(f"{file}: {found[0].strip()!r} needs mesalm; write `from mesalm.model.FILE import NAME`")
    (folder / file.name).write_text(code, encoding="utf-8")
    with (folder / "mixers.py").open("a", encoding="utf-8") as table:
        table.write(f"\n\nfrom .{file.stem} import {build.__name__}\n")  # the line by which transformers finds the file
