"""Write a folder that any process with transformers can load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mesalm.model
from mesalm.hub.model_card import model_card
from mesalm.hub.new_folder import must_be_new, new_folder
from mesalm.hub.open_model import locate, open_model, open_tokenizer
from mesalm.model.configuration_mesa import MesaConfig

AUTO_MAP = {
    "AutoConfig": "configuration_mesa.MesaConfig",
    "AutoModel": "modeling_mesa.MesaModel",
    "AutoModelForCausalLM": "modeling_mesa.MesaForCausalLM",
    "AutoModelForSequenceClassification": "classifier_mesa.MesaForSequenceClassification",
}


def publish(model: str, folder: str | Path) -> Path:
    """Write weights (safetensors), tokenizer, model card and remote code of MODEL to `folder`; return it.

    The code is the flat model folder of this package, so that
    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works without mesalm.

    Args:
        model: a run folder or a saved mesa model's folder.
        folder: a path that does not exist yet, or an empty folder.

    Raises:
        ValueError: the model is not a mesa model, or `folder` holds something.
    """
    folder = Path(folder)
    must_be_new(folder, "publish")
    source = Path(locate(model))
    opened = open_model(model)
    if not isinstance(opened.config, MesaConfig):
        raise ValueError(f"{model}: model_type is {opened.config.model_type!r}; only mesa models need remote code")
    tokenizer = open_tokenizer(model)
    with new_folder(folder, "publish") as staged:
        opened.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        _add_code(staged)
        run = source.parent if (source.parent / "journal.jsonl").is_file() else None
        (staged / "README.md").write_text(model_card(opened, folder.name, run), encoding="utf-8")
    return folder


def _add_code(folder: Path) -> None:
    """Copy the flat model folder beside the weights and name its classes in config.json."""
    for place in mesalm.model.__path__:
        for file in sorted(Path(place).glob("*.py")):
            if file.name != "__init__.py":
                shutil.copyfile(file, folder / file.name)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = AUTO_MAP
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
