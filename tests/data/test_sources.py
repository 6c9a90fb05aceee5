from __future__ import annotations

import gzip
import http.server
import json
import os
import threading
import tokenize
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mesalm.data.corpora import SOURCES
from mesalm.data.documents import DataError, Document, Faults
from mesalm.data.read_files import matching_files
from mesalm.data.read_python import StandardLibrarySource
from mesalm.data.source_settings import SourceSettings
from mesalm.settings import SettingsError

GOOD = {"id": "one", "domain": "books", "text": "A text.\n"}


def read(skip_bad: bool = False, **settings: Any) -> tuple[list[Document], Faults]:
    faults = Faults(skip_bad)
    chosen = SourceSettings.build({"name": "files", **settings})
    return list(SOURCES[chosen.name](chosen).documents(faults)), faults


def packed(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def line(record: Any) -> bytes:
    return json.dumps(record).encode() + b"\n"


def test_every_kind_of_file_gives_its_documents(tmp_path: Path) -> None:
    text = "Zwei Zeilen\nmit ü\n"
    (tmp_path / "a.txt").write_text(text, "utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.jsonl").write_bytes(line(GOOD) + b"\n" + line({"text": "no names"}))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(line(GOOD)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD]), tmp_path / "e.parquet")
    documents, _ = read(files=str(tmp_path / "*"))
    assert documents == [
        Document("a.txt", "files", text),
        Document("b.txt.gz", "files", text),
        Document("one", "books", GOOD["text"]),
        Document("c.jsonl:3", "files", "no names"),
        Document("one", "books", GOOD["text"]),
        Document("one", "books", GOOD["text"]),
    ]
    limited, _ = read(files=[str(tmp_path / "d.*"), str(tmp_path / "c.jsonl")], limit=2, domain="mine")
    assert [(document.id, document.domain) for document in limited] == [("one", "mine"), ("one", "mine")]


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("x.jsonl", line(GOOD) + b'{"text": "half\n', ":2: ", "broken JSON"),
        ("x.jsonl", line(GOOD) + line(["text"]), ":2: ", "must be a JSON object, not list"),
        ("x.jsonl", line(GOOD) + line({"body": 1}), ":2: ", "no column 'text' (columns: body); set text_column"),
        ("x.jsonl", line(GOOD) + line({"text": None}), ":2: ", "must be text, not null"),
        ("x.jsonl", line(GOOD) + b'{"text": "\\ud800"}\n', ":2: ", "half a surrogate pair"),
        ("x.jsonl", line(GOOD) + line({**GOOD, "domain": "\ud800"}), ":2: ", "'domain' holds half a surrogate pair"),
        ("x.jsonl", line(GOOD) + line({**GOOD, "id": "\ud800"}), ":2: ", "'id' holds half a surrogate pair"),
        ("x.jsonl", line(GOOD) + '{"text": "é"}\n'.encode("latin-1"), ":2: ", "not UTF-8 (byte 0xe9"),
        ("x.jsonl.gz", gzip.compress(line(GOOD) * 999, mtime=0)[:-20], ":", "broken gzip file"),
        ("x.jsonl.gz", b"not gzip at all", ":1: ", "broken gzip file"),
        ("x.jsonl.zst", packed(line(GOOD) * 999)[:-20], ":", "broken zstd file"),
        ("x.json", b'[{"text": "one"}, {"text"', ": ", "broken JSON"),
        ("x.json", line([GOOD, "text"]), ": record 2: ", "must be a JSON object, not str"),
        ("x.json", '["é"]'.encode("latin-1"), ":1: ", "not UTF-8 (byte 0xe9"),
        ("x.csv", b"body\nx\n", ": ", "no column 'text' (columns: body)"),
        ("x.csv", b"text,text\nx,y\n", ": ", "the header names column 'text' twice"),
        ("x.csv", b"id,text,id\n1,x,2\n", ": ", "the header names column 'id' twice"),
        ("x.csv", b"text,id\nx,1\ny\n" + b"z,2,3\n", ":4: ", "has more cells than the header"),
        ("x.csv", b"id,text\n1\n", ":2: ", "must be text, not null"),
        ("x.csv", b'text\nx\n"half\n', ":3: ", "not a CSV file in UTF-8"),
        ("x.txt", "one\ntwo\nthré\n".encode("utf-16-le"), ":3: ", "not UTF-8"),
        ("x.parquet", b"PAR1 no", ": ", "not a parquet file"),
    ],
)
def test_a_bad_file_is_named_or_counted(tmp_path: Path, name: str, content: bytes, where: str, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(files=str(path))
    assert str(caught.value).startswith(f"{path}{where}")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    _, faults = read(files=str(path), skip_bad=True)
    assert faults.count == 1
    assert what in faults.examples[0]


def test_tables_arrays_and_packed_files_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "[1]" / "deeper"
    folder.mkdir(parents=True)
    long = "x" * 200_000  # longer than the cells that python's csv reads by itself
    (folder / "a.csv").write_text(f'id,text\n1,"two\nlines, NA"\n2,1984\n3,NA\n4,{long}\n')
    (folder / "b.json").write_text(json.dumps([GOOD, {"text": "no names"}]))
    (folder / "c.json.gz").write_bytes(gzip.compress(line(GOOD)))
    (folder / "d.txt.zst").write_bytes(packed("Zeilen mit ü\n".encode()))
    (folder / "e.jsonl.zst").write_bytes(packed(line(GOOD) * 2))
    (folder / "f.csv.zst").write_bytes(packed(b"text\nend\n"))
    (folder / "README.md").write_text("of another kind")
    documents, _ = read(files=str(tmp_path / "[1]"))
    texts = [document.text for document in documents]
    good = GOOD["text"]
    expected = ["two\nlines, NA", "1984", "NA", long, good, "no names", good, "Zeilen mit ü\n", good, good, "end"]
    assert texts == expected
    assert [document.id for document in documents[:6]] == ["1", "2", "3", "4", "one", "b.json:2"]
    source = SOURCES["files"](SourceSettings(name="files", files=str(tmp_path / "[1]")))
    assert [document for part in source.shards() for document in part.documents(Faults())] == documents


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b""),
        ("x.jsonl", b"\n\n"),
        ("x.txt", b""),
        ("x.txt.gz", gzip.compress(b"", mtime=0)),
        ("x.json", b"[]"),
        ("x.csv", b"id,text\n"),
        ("x.parquet", None),
    ],
)
def test_an_empty_file_is_counted_and_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    else:
        path.write_bytes(content)
    documents, faults = read(files=str(path))
    assert (documents, faults.empty_files, faults.count) == ([], [str(path)], 0)


def test_bad_parquet_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", "b"]}), path)
    with pytest.raises(DataError, match=r"x\.parquet: no column 'text' \(columns: body\)"):
        read(files=str(path))
    assert read(files=str(path), skip_bad=True)[1].count == 1
    assert [document.text for document in read(files=str(path), text_column="body")[0]] == ["a", "b"]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(DataError, match="row 2: column 'text' must be text, not null"):
        read(files=str(path))


def test_files_that_cannot_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_text("a,b\n")
    with pytest.raises(DataError, match=r"unknown kind of file; give one of \.txt"):
        read(files=str(tmp_path / "x.pdf"))
    with pytest.raises(DataError, match="no such file"):
        read(files=str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match=r"no file in this folder ends in \.txt"):
        read(files=str(tmp_path))
    with pytest.raises(SettingsError, match="has no files"):
        read()
    (tmp_path / os.fsdecode(b"\xfc.txt")).write_text("named in another encoding")
    with pytest.raises(DataError, match=r"xfc\.txt': this name is not UTF-8; rename"):
        read(files=str(tmp_path))


def test_a_file_is_read_once_by_whatever_paths_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("text")
    (tmp_path / "texts" / "a.txt").symlink_to("b.txt")
    (tmp_path / "texts" / "loop").symlink_to(tmp_path, target_is_directory=True)
    patterns = [str(tmp_path / "texts"), str(tmp_path / "texts" / ".." / "texts" / "b.txt")]
    assert matching_files(patterns) == [tmp_path / "texts" / "a.txt"]


def test_ready_made_ids(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.jsonl"
    path.write_bytes(line({"ids": [3, 4]}) + line({"ids": [3, -4]}))
    with pytest.raises(DataError, match=r"x\.txt\.jsonl:2: column 'ids' must be a list of whole numbers"):
        read(files=str(path), ids_column="ids")
    documents, faults = read(files=str(path), ids_column="ids", skip_bad=True)
    assert documents == [Document("x.txt.jsonl:1", "files", None, [3, 4])]
    assert faults.count == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_reads_a_local_dataset(tmp_path: Path, streaming: bool) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{**GOOD, "id": str(number), "other": number} for number in range(5)]
    for number, part in enumerate((rows[:3], rows[3:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / f"train-0000{number}.parquet")
    settings = {"name": "hub", "dataset": str(folder), "streaming": streaming}
    documents, _ = read(**settings)
    assert documents == [Document(str(number), "books", GOOD["text"]) for number in range(5)]
    assert len(read(**settings, limit=2)[0]) == 2
    parts = SOURCES["hub"](SourceSettings.build(settings)).shards()
    assert [list(part.documents(Faults())) for part in parts] == [documents[:3], documents[3:]]
    with pytest.raises(DataError, match=r"corpus: row 1: no column 'body' \(columns: .*other"):
        read(**settings, text_column="body")
    with pytest.raises(DataError, match=r"corpus: the dataset cannot be loaded \(.*split"):
        read(**settings, split="nothing")


def test_hub_reads_one_format_of_a_folder_with_two(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    (folder / "notes.txt").write_text("not of this dataset")
    source = SOURCES["hub"](SourceSettings.build({"name": "hub", "dataset": str(folder)}))
    assert [document.text for document in source.documents(Faults())] == ["a.jsonl", "b.jsonl"]
    assert [file["name"] for file in source.identity()["files"]] == ["a.jsonl", "b.jsonl"]


def test_hub_reads_a_format_with_files(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(line(GOOD))
    settings = SourceSettings(name="hub", dataset="json", files=str(path))
    source = SOURCES["hub"](settings)
    before = source.identity()
    assert [document.text for document in source.documents(Faults())] == [GOOD["text"]]
    path.write_bytes(line({**GOOD, "text": "b text.\n"}))
    assert source.identity() != before


class HalfAServer(http.server.BaseHTTPRequestHandler):
    """Serves one.jsonl, and of any other file only that it exists."""

    body = b'{"text": "alpha beta"}\n' * 3

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path == "/one.jsonl":
            self.wfile.write(self.body)


def test_a_network_that_fails_in_mid_stream_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HalfAServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        files = [f"http://127.0.0.1:{server.server_port}/{name}.jsonl" for name in ("one", "two")]
        documents = SOURCES["hub"](SourceSettings(name="hub", dataset="json", files=files, streaming=True)).documents(
            Faults()
        )
        assert [next(documents).text for _ in range(3)] == ["alpha beta"] * 3
        with pytest.raises(DataError, match=r"json: reading ended after row 3 \(.*\); check .* network") as caught:
            next(documents)
        assert "\n" not in str(caught.value)
        server.shutdown()


def test_hub_without_a_dataset_is_refused() -> None:
    with pytest.raises(SettingsError, match="has no dataset"):
        read(name="hub")


def test_hub_names_a_missing_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    monkeypatch.setattr("mesalm.pretrained._asked", {True: 0.0})  # the Hub has answered
    with pytest.raises(DataError, match=r"^no/such: the dataset cannot be loaded \(Dataset 'no/such'") as caught:
        read(name="hub", dataset="no/such")
    assert "\n" not in str(caught.value)


def test_the_standard_library_leaves_tests_out() -> None:
    source = StandardLibrarySource(SourceSettings(name="python-stdlib"))
    names = list(source.files)
    assert "json/decoder.py" in names
    assert not [name for name in names if "/test/" in f"/{name}" or "/tests/" in name or "site-packages" in name]
    assert names == sorted(names)
    faults = Faults()
    found = {document.id: document for document in source.documents(faults)}
    with tokenize.open(tokenize.__file__) as file:
        assert found["tokenize.py"].text == file.read()
    assert {document.domain for document in found.values()} == {"python"}
    assert faults.count == 0


def test_the_standard_library_copes_with_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\nname = 'é'\n".encode("latin-1"))
    (tmp_path / "wrong.py").write_bytes("name = 'é'\n".encode("latin-1"))
    (tmp_path / "odd.py").write_bytes(b"# coding: no-such\n")
    source = StandardLibrarySource(SourceSettings(name="python-stdlib"))
    faults = Faults()
    assert [document.text for document in source.documents(faults)] == ["# coding: latin-1\nname = 'é'\n"]
    assert faults.undecodable == 2
    before = source.identity()
    (tmp_path / "latin.py").write_bytes(b"changed\n")
    assert source.identity()["sha256"] != before["sha256"]


def install(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """Lay out a distribution as pip leaves it: its files, and a record of them."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (about / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{about.name}/METADATA"]))


CODE = "".join(f"def function_number_{number}(argument): ...\n" for number in range(20))


def test_packages_give_their_own_source_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path,
        "somepack",
        "1.2",
        {
            "somepack/a.py": CODE.encode(),
            "somepack/b.py": b"# coding: latin-1\nname = '\xe9'\n",
            "somepack/copy_of_a.py": (CODE + "one_more_line_of_its_own = True\n").encode(),
            "somepack/empty.py": b"",
            "somepack/half_of_a.py": (CODE[: len(CODE) // 2] + CODE.replace("function", "method")).encode(),
            "somepack/tests/test_a.py": b"assert 'not wanted here at all'\n",
            "somepack/wrong.py": b"name = '\xe9'\n",
            "somepack/data.txt": b"not Python",
        },
    )
    monkeypatch.syspath_prepend(tmp_path)
    documents, faults = read(name="packages", packages=["somepack==1.2"])
    assert [document.id for document in documents] == [
        "somepack/a.py",
        "somepack/b.py",
        "somepack/empty.py",
        "somepack/half_of_a.py",
    ]
    assert documents[1] == Document("somepack/b.py", "somepack", "# coding: latin-1\nname = 'é'\n")
    assert (faults.near_copies, faults.undecodable, faults.count) == (1, 1, 0)
    assert len(read(name="packages", packages=["somepack"], limit=2)[0]) == 2
    source = SOURCES["packages"](SourceSettings(name="packages", packages=["somepack"]))
    before = source.identity()["packages"][0]
    assert (before["name"], before["version"]) == ("somepack", "1.2")
    (tmp_path / "somepack/half_of_a.py").write_bytes(b"changed\n")
    assert source.identity()["packages"][0]["sha256"] != before["sha256"]


def test_packages_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "somepack", "1.2", {"somepack/data.txt": b"not Python"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="has no packages; set packages"):
        read(name="packages")
    with pytest.raises(DataError, match=r"'no-such-pack' is not installed; pip install 'no-such-pack==3'"):
        read(name="packages", packages=["no-such-pack==3"])
    with pytest.raises(DataError, match=r"installed at version 1\.2, not 1\.3; pip install 'somepack==1\.3'"):
        read(name="packages", packages=["somepack==1.3"])
    with pytest.raises(DataError, match="somepack has no Python source"):
        read(name="packages", packages=["somepack"])
    with pytest.raises(DataError, match="'' is not installed"):
        read(name="packages", packages=[""])
