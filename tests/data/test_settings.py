from __future__ import annotations

import pytest
from pydantic import Field

from mesalm.data.data_settings import DataSettings
from mesalm.data.source_settings import SourceSettings
from mesalm.settings import Settings, SettingsError, nearest


class Inner(Settings):
    rate: float = Field(default=0.1, gt=0.0, description="The rate.")


class Outer(Settings):
    inner: Inner = Field(default_factory=Inner, description="The inside.")
    table: dict[str, Inner] = Field(default_factory=dict, description="Named.")
    steps: int = Field(description="The steps.")


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"sequence_lenth": 3}, "data.sequence_lenth: unknown key; did you mean 'sequence_length'?"),
        ({"vocab_size": "many"}, "data.vocab_size: must be a valid integer"),
        ({"deduplicate": True}, "data.deduplicate: must be a number, not True"),
        ({"sources": [{"name": "python-stdlib", "limit": False}]}, "data.sources.0.limit: must be a number, not False"),
        ({"vocab_size": 7}, "data: vocab_size: 7 is less than the 258 tokens"),
        ({"sources": [{"name": "flies"}]}, "data.sources.0.name: 'flies' is not a source; did you mean 'files'?"),
        ({"sources": [{"name": "files", "fils": 1}]}, "data.sources.0.fils: unknown key; did you mean 'files'?"),
        (
            {"sources": [{"name": "files", "files": 3}]},
            "data.sources.0.files: must be a valid string or a valid list, not 3",
        ),
        ({"sources": [{"name": "files", "use": "tran"}]}, "did you mean 'train'?"),
        (
            {"sources": [{"name": "python-stdlib", "files": "mine.txt"}]},
            "data.sources.0: files is not read by source 'python-stdlib'; set name=files or hub, or leave files out",
        ),
        (
            {"sources": [{"name": "packages", "packages": ["numpy"], "dataset": "d"}]},
            "dataset is not read by source 'packages'; set name=hub",
        ),
        ({"sources": []}, "data.sources: "),
        ({"sources": [{"name": "episodes", "episodes": {"seed": 2**32}}]}, "seed: must be less than or equal to"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"sources": [{"name": "files", "ids_column": "ids"}]}, "has its own tokenizer"),
        ({"tokenizer": "none"}, "tokenizer 'none' needs ids_column"),
        (
            {"tokenizer": "none", "sources": [{"name": "files", "ids_column": "i"}], "deduplicate": 0.8},
            "deduplicate needs text, which ids give only with a tokenizer; set tokenizer",
        ),
        (
            {"tokenizer": "none", "sources": [{"name": "files", "ids_column": "i"}], "decontaminate": ["asked.jsonl"]},
            "decontaminate needs text",
        ),
        ({"sources": [{"name": "files", "use": "valid", "weight": 1}]}, "is only used for valid; leave out its weight"),
        ({"sources": [{"name": "files", "weight": 1}, {"name": "hub"}]}, "only some training sources have a weight"),
        ({"stream": True, "deduplicate": 0.8}, "deduplicate must see all documents first"),
        ({"stream": True, "sources": [{"name": "files", "limit": 3}]}, "a streamed training source has no limit"),
        ({"stream": True, "sources": [{"name": "files"}, {"name": "hub"}]}, "streamed sources are mixed by weight"),
        (
            {"stream": True, "tokenizer": "t", "sources": [{"name": "files", "ids_column": "i"}]},
            "stream reads text; leave out ids_column",
        ),
        (["sources"], "data: must be a mapping of settings"),
    ],
)
def test_wrong_settings_give_one_line(wrong: object, line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        DataSettings.build(wrong, "data")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nested_keys_and_missing_ones() -> None:
    assert Outer.build({"steps": 3, "table": {"a": {"rate": "1e-3"}}}).table["a"].rate == 1e-3
    with pytest.raises(SettingsError, match=r"^steps: is missing; give it a value$"):
        Outer.build({})
    with pytest.raises(SettingsError, match=r"^x\.table\.a\.rat: unknown key; did you mean 'rate'\?$"):
        Outer.build({"steps": 1, "table": {"a": {"rat": 1}}}, "x")
    with pytest.raises(SettingsError, match=r"^inner\.rate: must be greater than 0, not -1 \(and 1 more\)$"):
        Outer.build({"inner": {"rate": -1}})


def test_assignment_is_checked() -> None:
    settings = DataSettings()
    with pytest.raises(ValueError, match="vocab_size"):
        settings.vocab_size = 3


def test_describe_lists_every_field_with_its_default() -> None:
    rows = {key: (kind, default, text) for key, kind, default, text in Outer.describe("recipe")}
    assert rows["recipe.inner.rate"] == ("float", "0.1", "The rate.")
    assert rows["recipe.steps"] == ("int", "(required)", "The steps.")
    assert "recipe.table.NAME.rate" in rows
    data = DataSettings.describe("data")
    for name in SourceSettings.model_fields:
        key = f"data.sources.0.{name}"
        assert any(row[0] == key or row[0].startswith(f"{key}.") for row in data), name
    assert all(text.endswith(".") for *_, text in data)


def test_nearest() -> None:
    assert nearest("lerning_rate", ["learning_rate", "steps"]) == "learning_rate"
    assert nearest("zzz", ["learning_rate"]) is None
