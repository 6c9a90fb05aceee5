"""The corpus card: sources, counts, and what was dropped and why, as Markdown from a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mesalm.markdown import code, plain
from mesalm.wording import plural

CARD = "corpus.md"
"""The file name of the card in folders of prepared data and of runs."""


def corpus_card(manifest: Mapping[str, Any]) -> str:
    """Return the card of prepared data."""
    return "\n".join(["# Corpus", "", *corpus_lines(manifest), *_details(manifest)]) + "\n"


def corpus_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Return sources, sizes and what was dropped, one fact per line, for the cards of corpus and model."""
    sources = manifest["sources"]
    licences = manifest.get("licences") or [None] * len(sources)
    lines = [
        f"- data: {_identity(source)}" + (f"; licence {plain(licence)}" if licence else "")
        for source, licence in zip(sources, licences, strict=True)
    ]
    settings = manifest.get("settings", {})
    if settings.get("stream"):
        lines.append(
            "- training text was streamed; counts, tokenizer and held-out text come from the first "
            f"{plural(settings['stream_sample'], 'document')} of each source"
        )
    for split in ("train", "valid"):
        counts = manifest["splits"].get(split)
        if counts:
            lines.append(f"- {split} split: {_counts(counts)}")
    lines += [f"- dropped: {dropped}" for dropped in _dropped(manifest, settings)]
    return [*lines, f"- sha256 of the prepared data: {code(manifest['hash'])}"]


def _details(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that only the corpus card has: mixture, rows, domains, tokenizer."""
    settings, splits = manifest["settings"], manifest["splits"]
    weighted = [source for source in settings["sources"] if source.get("weight")]
    for number, source in enumerate(weighted):
        parts = splits["train"].get("parts")
        size = f", {plural(parts[number], 'row')}" if parts else ""
        yield f"- mixture: {plain(source['name'])} by weight {source['weight']:g}{size}"
    for name, counts in splits.items():
        yield (
            f"- {name} rows: {counts['rows']:,} of {settings['sequence_length']:,} tokens, sha256 "
            f"{code(counts['sha256'])}; {plural(counts['dropped_tokens'], 'token')} left over at the end"
        )
    tokenizer = manifest["tokenizer"]
    named = f" ({plain(tokenizer['name'])})" if "name" in tokenizer else ""
    digest = f", sha256 {code(tokenizer['sha256'])}" if "sha256" in tokenizer else ""
    yield f"- tokenizer: {tokenizer['kind']}{named}, {tokenizer['vocab_size']:,} tokens{digest}"
    yield from ("", "| split | domain | documents | bytes | tokens |", "|---|---|---|---|---|")
    for name, counts in splits.items():
        for domain, about in counts["domains"].items():
            yield f"| {name} | {plain(domain)} | {about['documents']:,} | {about['bytes']:,} | {about['tokens']:,} |"


def _dropped(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    words = {
        "duplicates": ("exact copy", None),
        "near_copies": ("near-copy", None),
        "empty": ("empty file or document", "empty files and documents"),
        "undecodable": ("file that does not decode", "files that do not decode"),
    }
    for key, nouns in words.items():
        if manifest.get(key):
            threshold = settings.get("deduplicate") if key == "near_copies" else None
            yield plural(manifest[key], *nouns) + (f" (similarity {threshold:g} or more)" if threshold else "")
    if manifest.get("bad", {}).get("count"):
        yield plural(manifest["bad"]["count"], "bad file or record", "bad files and records")
    for file in manifest.get("contamination", []):
        yield (
            plural(file["documents"], "document that shares", "documents that share")
            + f" 13 words in a row with {plain(file['name'])} (sha256 {code(file['sha256'])}; {file['short']:,} "
            f"of its {plural(file['texts'], 'text')} shorter than that)"
        )


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(plural(counts[f"{word}s"], word) for word in ("document", "byte", "token"))


def _identity(source: Mapping[str, Any]) -> str:
    files = source.get("files", [])
    if files:
        return "; ".join(f"{plain(file['name'])} ({_fixed(file)})" for file in files)
    if "packages" in source:
        return "; ".join(f"{plain(part['name'])} {part['version']} ({_fixed(part)})" for part in source["packages"])
    rest = [f"{key} {value}" for key, value in source.items() if key != "name" and isinstance(value, (str, int))]
    return plain(f"{source['name']} ({', '.join(rest)})" if rest else str(source["name"]))


def _fixed(part: Mapping[str, Any]) -> str:
    if "sha256" in part:
        return f"sha256 {code(part['sha256'])}"
    return f"origin {plain(', '.join(part['origin']))}"
