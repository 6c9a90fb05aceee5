"""What a user can type wrong: one line that names it, exit code 2, nothing begun."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_scores import made
from tiny import TINY, tiny_model

from mesalm.cli import main

RECIPE = """
name: tiny
data: {sources: [{name: files, files: "d*.txt"}], vocab_size: 300, sequence_length: 64, valid_fraction: 0.2}
model: MODEL
train: {steps: 2, batch_rows: 2, device: cpu}
arms: {mesa: {model.mixers: mesa}, softmax: {model.mixers: softmax}}
""".replace("MODEL", json.dumps({**TINY, "max_position_embeddings": 64}))
TASK = '{"input": "a", "output": "b", "split": "pool"}\n{"input": "c", "output": "d", "split": "eval"}\n'


def edited(folder: Path, source: Path, change: Callable[[dict], object]) -> None:
    """Copy a model's folder and change its configuration."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe, two small models, a run, and broken things named after their fault."""
    from mesalm.data.bpe import train_tokenizer

    home = tmp_path_factory.mktemp("world")
    texts = ["\n".join(f"document {number} line {line} of text" for line in range(40)) for number in range(12)]
    for number, text in enumerate(texts):
        (home / f"d{number}.txt").write_text(text)
    tokenizer = train_tokenizer(texts, 300)
    for mixer in ("mesa", "softmax"):
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
        tiny_model(**sizes, mixers=mixer).save_pretrained(home / mixer)
        tokenizer.save_pretrained(home / mixer)
    good = home / "mesa"
    for name, damage in {
        "truncated": lambda weights: weights.write_bytes(weights.read_bytes()[:2000]),
        "emptied": lambda weights: weights.write_bytes(b""),
        "weightless": lambda weights: weights.unlink(),
    }.items():
        shutil.copytree(good, home / name)
        damage(home / name / "model.safetensors")
    edited(home / "wider", good, lambda config: config.update(hidden_size=64))
    edited(home / "deeper", good, lambda config: config.update(num_hidden_layers=3))
    edited(home / "shallower", good, lambda config: config.update(num_hidden_layers=1))
    edited(home / "typeless", good, lambda config: config.clear())
    edited(home / "alien", good, lambda config: config.update(model_type="alien"))
    for name, file, content in (
        ("nojson", "config.json", b"{nope"),
        ("listjson", "config.json", b"[]"),
        ("binary", "config.json", b"\xff\xfe\x00"),
        ("badtokens", "tokenizer.json", b"{nope"),
        ("badprefix", "prefix.json", b"{nope"),
        ("emptyprefix", "prefix.json", b"{}"),
        ("prefix", "prefix.json", b'{"base": "mesa"}'),
    ):
        shutil.copytree(good, home / name)
        (home / name / file).write_bytes(content)
    shutil.copytree(good, home / "wordless")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (home / "wordless" / file).unlink()
    for name, recipe in (("run", RECIPE), ("badrun", "a: [\n"), ("intrun", "data: 3\n")):
        shutil.copytree(good, home / name / "final")
        (home / name / "journal.jsonl").write_text('{"event": "start", "step": 0}\n')
        (home / name / "recipe.yaml").write_text(recipe)
    (home / "unfinished").mkdir()
    (home / "unfinished" / "journal.jsonl").write_text("")
    (home / "void").mkdir()
    made("a", 0).write(home / "stored" / "scores")
    files = {
        "r.yaml": RECIPE,
        "gz.yaml": gzip.compress(RECIPE.encode()),
        "utf16.yaml": RECIPE.encode("utf-16"),
        "list.yaml": "- 1\n",
        "null.yaml": "",
        "syntax.yaml": "a: [1\nb: 2",
        "deep.yaml": "a: " + "[" * 3000,
        "twice.yaml": "name: a\nname: b\n",
        "tagged.yaml": "a: !!python/name:os.x",
        "file": "x\n",
        "empty.txt": "",
        "one.txt": "a",
        "latin.txt": b"abc\xff\xfe\n",
        "int.jsonl": '{"text": 3}\n',
        "nope.jsonl": "{nope\n",
        "nope.parquet": "nope",
        "nope.txt.gz": "nope",
        "table.csv": "a,b\n1,2\n",
        "task.jsonl": TASK,
        "split.jsonl": TASK.replace("pool", "x"),
        "rows.jsonl": "[1]\n",
        "labelled.jsonl": TASK,
        "labelled.labels.json": "{nope",
        "kind.yaml": "kind: nosuch\ndataset: x",
        "scores.json": "{}",
        "scorelist.json": "[]",
        "old.json": '{"format": 1}',
        "scorebytes.json": b"\xff\xfe",
        "with space ü.txt": b"\xff",
    }
    for name, content in files.items():
        (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return home


@pytest.fixture(autouse=True)
def _at_home(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("MESALM_CACHE", str(world / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def complaint(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with exit code 2 and one line; return the line."""
    capfd.readouterr()
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    out, shown = capfd.readouterr()
    *before, last = shown.splitlines() or [""]
    assert code == 2, shown
    assert out == ""
    assert [line for line in before if not line.startswith(STAGES)] == []
    assert last.startswith("mesalm")
    return last


STAGES = ("to train: ", "reading ", "training ", "tokenising ", "packing ")
"""What a command may say of its work before it finds the fault."""

SPLIT = "  "
"""Stands between the arguments of a case, since some hold a space."""

CASES = """
train r.yaml  init_from=nosuchdir | nosuchdir
train r.yaml  init_from=no/such | no/such
train r.yaml  init_from=./gone | init_from: ./gone
train r.yaml  init_from=file | file is a file
train r.yaml  init_from=void | void contains no model
train r.yaml  init_from=truncated  data.tokenizer=truncated | truncated: no model
train r.yaml  init_from=nojson | nojson
train r.yaml  init_from=alien | alien
train r.yaml  data.sequence_length=128 | set model.max_position_embeddings=128
train r.yaml  schedule.name=wsd  schedule.warmup_fraction=.9  schedule.decay_fraction=.9 | schedule.decay_fraction
train r.yaml  schedule.warmup_steps=9 | schedule.warmup_steps: 9 are more than the run's 2
train r.yaml  schedule.name=wds | did you mean 'wsd'?
train gz.yaml | gz.yaml: is not text
prepare gz.yaml | gz.yaml: is not text
synth gz.yaml | gz.yaml: is not text
train utf16.yaml | utf16.yaml: is not text
train list.yaml | list.yaml: must hold a mapping
train null.yaml | null.yaml: must hold a mapping
train syntax.yaml | syntax.yaml, line 2
train deep.yaml | deep.yaml: not valid YAML
train twice.yaml | line 2: name is given twice
train tagged.yaml | tagged.yaml, line 1: not valid YAML
train void | void: is a folder
train gone.yaml | gone.yaml: no such recipe file
train dmeo | did you mean 'demo'?
train | recipe
train  | the recipe's name is empty
train r.yaml  =3 | must be dotted.key=value
train r.yaml  train=3 | train: must be a mapping of settings
train r.yaml  train.steps=0 | train.steps
train r.yaml  train.steps=abc | train.steps
train r.yaml  train.steps=1e99 | train.steps
train r.yaml  train.steps.x=3 | train.steps.x
train r.yaml  seed=-1 | seed
train r.yaml  seed=99999999999999999999 | seed: must be less
train r.yaml  name=a/b | name: must be letters
train r.yaml  name=ü | name: must be letters
train r.yaml  track=wandb | write [wandb]
train r.yaml  optim.learning_rate=.inf | optim.learning_rate: must be a finite number
train r.yaml  train.clip=.nan | train.clip: must be a finite number
train r.yaml  model.nosuch=3 | model.nosuch: unknown key
train r.yaml  sample.temperature=1e-40 | sample.temperature
train r.yaml  sample.every=1  sample.prompts=[] | prompts: is empty
sample ~nobody/model | ~nobody/model
train r.yaml  --arm  nosuch | 'nosuch': no such arm
train r.yaml  --arm  mesa  --arm  mesa | mesa is given twice
train r.yaml  --seeds  x | 'x'
train r.yaml  --seeds  99999999999999999999, | seed: must be less
train r.yaml  --resume  maybe | 'maybe'
train r.yaml  --arm  messa | did you mean 'mesa'?
train r.yaml  --plan  --hardware  H10 | 'H10' is not a card in the table; did you mean 'H100'?
train r.yaml  --plan  --gpus  8 | --hardware: is missing; name the card, such as --hardware H100
train r.yaml  --plan  --assume  map=1 | map: unknown key; did you mean 'maps'?
train r.yaml  --plan  --assume  mixers.mess=1 | mixers.mess: 'mess' is not a mixer; did you mean 'mesa'?
train r.yaml  --probe | --probe: belongs to --plan; add --plan, or leave it out
train r.yaml  --plan  --hardware  H100  --gpus  512 | train.batch_rows: 2 must be a multiple of 512
train r.yaml  data.stream=true  train.workers=1 | train.workers: a streamed corpus is read ahead without workers
train r.yaml  --resum  must  --nosuch | --nosuch
train r.yaml  arms.mesa.nosuch=3 | arms.mesa: nosuch: unknown key
prepare r.yaml  --skip-bad | no option --skip-bad
prepare r.yaml  data.sources.0.files=*.x | *.x: no such file
prepare r.yaml  data.sources.0.files=gone.txt | gone.txt: no such file
prepare r.yaml  data.sources.0.files=void | void: no file in this folder
prepare r.yaml  data.sources.0.files=empty.txt | no documents (1 empty file, such as empty.txt)
prepare r.yaml  data.sources.0.files=table.csv | table.csv: no column 'text' (columns: a, b)
prepare r.yaml  data.sources.0.files=latin.txt | latin.txt:1: not UTF-8
prepare r.yaml  data.sources.0.files=with space ü.txt | with space ü.txt
prepare r.yaml  data.sources.0.files=int.jsonl | set data.skip_bad=true
prepare r.yaml  data.sources.0.files=nope.jsonl | nope.jsonl:1: broken JSON
prepare r.yaml  data.sources.0.files=nope.parquet | nope.parquet: not a parquet file
prepare r.yaml  data.sources.0.files=nope.txt.gz | nope.txt.gz: broken gzip
prepare r.yaml  data.sources.0.files=[] | has no files
prepare r.yaml  data.decontaminate=[d*.txt] | 12 documents dropped as contaminated); check data.decontaminate
prepare r.yaml  data.sources=[] | data.sources: must have at least 1
prepare r.yaml  data.tokenizer=nosuch | data.tokenizer: nosuch
prepare r.yaml  data.tokenizer=wordless | it contains no tokenizer
prepare r.yaml  data.tokenizer=badtokens | data.tokenizer: badtokens
prepare r.yaml  data.tokenizer=file | file is a file
prepare r.yaml  data.vocab_size=99999999999999999999 | data.vocab_size
prepare r.yaml  data.sequence_length=99999999999999999999 | data.sequence_length
prepare r.yaml  data.valid_fraction=.nan | data.valid_fraction
prepare r.yaml  data.cache_dir=file | file
sample nosuch | nosuch: no tokenizer could be opened
sample  | an empty model name
sample file | file is a file
sample void | void: no config.json
sample ./gone | there is no such folder
sample unfinished | no final/ yet
sample truncated | truncated: no model could be opened
sample emptied | emptied: no model could be opened
sample weightless | weightless: no model could be opened
sample wider | do not match config.json
sample deeper | is missing
sample shallower | has no place in the model
sample typeless | typeless
sample alien | alien
sample nojson | nojson
sample listjson | listjson
sample binary | binary
sample badtokens | badtokens: no tokenizer
sample wordless | wordless: no tokenizer
sample badprefix | badprefix: its prefix.json
sample emptyprefix | emptyprefix: its prefix.json
sample mesa  --tokens  0 | --tokens: must be a whole number of at least 1
sample mesa  --tokens  x | --tokens
sample mesa  --temperature  nan | temperature
sample mesa  --temperature  1e-40 | temperature
sample mesa  --top-p  0 | top-p
sample mesa  --seed  -1 | --seed
sample mesa  --seed  99999999999999999999 | --seed
sample mesa  --device  nosuch | 'nosuch' cannot be used here; choose from cpu
sample mesa  --device  meta | 'meta' cannot be used here
sample mesa  b | unexpected argument 'b'
eval nosuch | nosuch: no tokenizer
eval | MODEL
eval mesa | name text files with --text
eval badrun | badrun/recipe.yaml: was not written
eval intrun | intrun/recipe.yaml: was not written
eval mesa  --text  gone.txt | gone.txt: no such file
eval mesa  --text   | an empty file name
eval mesa  --text  int.jsonl | int.jsonl:1
eval mesa  --text  d1.txt  --task  copyng | did you mean 'copying'?
eval mesa  --text  d1.txt  --task   | an empty task name
eval mesa  --text  d1.txt  --task  void | void: contains no
eval mesa  --text  d1.txt  --task  split.jsonl | split.jsonl:1: split is 'x'
eval mesa  --text  d1.txt  --task  rows.jsonl | rows.jsonl:1
eval mesa  --text  d1.txt  --task  labelled.jsonl | labelled.labels.json
eval mesa  --text  d1.txt  --task  kind.yaml | kind.yaml.kind
eval mesa  --text  d1.txt  --task  hub: | names no dataset
eval mesa  --text  d1.txt  --task  task.jsonl  --task  task.jsonl | two tasks are named 'task'
eval mesa  --batch-tokens  0 | --batch-tokens
eval mesa  --suite  nosuch | --suite
eval mesa  --out  file | file is a file; name a folder
eval truncated  --text  d1.txt  --task  none | truncated: no model
eval wider  --text  d1.txt  --task  none | wider: the weights
eval mesa  --text  d1.txt  --task  none  --device  nosuch | 'nosuch' cannot be used here
compare mesa  softmax  --out  file/deep | file is a file; name a folder
compare | no model given
compare mesa  softmax  --text  d1.txt  --task  none  --baseline  nosuch | baseline 'nosuch'
compare mesa  --arm  x= | arm 'x='
compare --from-scores  gone  --suite  full | --suite: has no effect with --from-scores
compare --from-scores  gone  --task  x | --task: has no effect
compare --from-scores  gone  --plan | --plan: has no effect
compare --from-scores  gone | gone: no scores here
compare --from-scores  old.json  --out  c | format 1 cannot be read
compare --from-scores  stored  --from-scores  stored | twice
compare --from-scores  stored/scores/a.json | --out
compare stored  --from-scores  stored | not both
compare --arm  one | NAME=MODEL
compare --from-scores  scores.json  --out  c | scores.json: contains no readable scores
compare --from-scores  scorelist.json  --out  c | scorelist.json: contains no readable scores
compare --from-scores  scorebytes.json  --out  c | scorebytes.json: contains no readable scores
convert mesa  out | mesa: has no softmax layer to swap
convert nosuch  out | nosuch: no model
convert softmax  file | file is a file
convert softmax  void/../file/x | is a file; name a folder
convert softmax  mesa | mesa: exists
convert softmax  out  --layers  9 | there is no layer 9
convert softmax  out  --layers  nosuch | 'nosuch' names no layer
convert softmax  out  --calibrate  latin.txt | latin.txt:1: not UTF-8
convert softmax  out  --calibrate  one.txt | too few to fit the layers to
convert softmax  out  --calibrate  gone.txt | gone.txt
convert softmax  out  --seed  -1 | --seed
convert softmax  out  train.steps=3 | only changes the recipe of --recover
convert softmax  out  --recover  nosuch | nosuch: no such recipe
convert prefix  out | holds a soft prefix, not a model; name the model it was tuned for, mesa
convert mesa  out  --to  fla  --layers  0 | --layers: has no effect with --to
convert truncated  out | truncated: no model
publish truncated  out | truncated: no model
publish deeper  out | deeper: the weights
publish prefix  out | prefix: holds a soft prefix
publish mesa  out  --private | --private: needs a repository on the Hub
publish mesa  file | file is a file
publish mesa  out  --scores  scores.json | scores.json
inspect mesa  --out  file | file is a file
inspect mesa  --record  void | void is a folder; name a file
inspect mesa  --text  d1.txt  --length  9 | length: 9
inspect mesa  --record-heads  0.0 | --record FILE
inspect prefix  --text  d1.txt  --length  64 | prefix: holds a soft prefix
inspect badrun | badrun/recipe.yaml
inspect softmax  --text  d1.txt  --length  64  --tokens  64 | softmax: has no mesa layer
synth mqar-cpu  task.pairs=100  task.length=10 | task.pairs: the grid's axis 'size' sets it
synth mqar-cpu  model.mixers=mesa | the arm 'mesa' sets model.mixers
synth mqar-cpu  optim.learning_rate=1 | learning_rates
synth mqar-cpu  learning_rates=[0] | learning_rates.0
synth mqar-cpu  train.micro_rows=24  grid={} | train.batch_rows: 64 must be a multiple of train.micro_rows 24
synth mqar-cpu  seeds=[-1] | seeds.0
synth mqar-cpu  arms={} | arms: is empty
plot run  --out  x.png | x.png: figures are SVG
plot void  --out  x.svg  run | void: no journal
sweep r.yaml  name=a,b | name does not affect
synth demo | demo: no such recipe
tune mesa | --task
tune mesa  --task  gone.jsonl | gone.jsonl
tune mesa  --task  task.jsonl  shots=[] | shots
tune mesa  --task  task.jsonl  shots=[-1] | shots.0
tune mesa  --task  task.jsonl  --out  file | file is a file
tune prefix  --task  task.jsonl  shots=[0] | prefix: holds a soft prefix
tune truncated  --task  task.jsonl  shots=[0] | truncated: no model
lab | ACTION
lab run  1  --plan  nosuch=3 | nosuch: unknown key
lab run  nosuch | nosuch
lab run  1  --seeds  0 | --seeds
lab run  1  --device  nosuch | 'nosuch' cannot be used here
lab run  1  --out  file | file is a file
lab report  --out  void | void: holds no results
lab report  --size  paper  --out  void | run `mesalm lab run all --size paper` first
nosuch | nosuch
"""


@pytest.mark.parametrize("case", CASES.strip().splitlines())
def test_a_bad_input_is_one_line_that_names_it(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    typed, _, words = case.partition(" | ")
    first, *rest = typed.split(SPLIT)
    assert words in complaint([*first.split(" "), *rest], capfd)


def test_a_pattern_needs_no_quotes_and_leaves_empty_files_out(capfd: pytest.CaptureFixture[str], world: Path) -> None:
    (world / "dempty.txt").write_text("")
    try:
        assert main(["prepare", "r.yaml", "data.sources.0.files=d*.txt"]) == 0
    finally:
        (world / "dempty.txt").unlink()
    out, shown = capfd.readouterr()
    assert "skipped the empty file dempty.txt" in shown.splitlines()
    assert "left out: 1 empty" in out
    assert not set(shown) & set("%|\r")  # no bar where there is no terminal


def test_the_tokenizer_of_a_run_folder_is_that_of_its_final(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "r.yaml", "data.tokenizer=run"]) == 0
    assert "prepared" in capfd.readouterr().out


def test_an_arm_takes_a_dotted_key() -> None:
    from mesalm.train.recipe import load_recipe

    arm = load_recipe("r.yaml", ["arms.mesa.model.mixers=linear"]).arm("mesa")
    assert arm.model == {**load_recipe("r.yaml").model, "mixers": "linear"}


def test_a_training_says_first_what_it_will_do(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "r.yaml", f"output_dir={tmp_path}"]) == 0
    shown = capfd.readouterr().err.splitlines()
    assert shown[0] == "to train: 2 runs of 2 steps, 256 tokens: tiny-mesa, tiny-softmax"
    model = tmp_path / "tiny-softmax" / "final"
    from mesalm.hub.open_model import open_model

    count = sum(parameter.numel() for parameter in open_model(str(model)).parameters())
    assert any(line.startswith(f"tiny-softmax: {count:,} parameters") for line in shown)
