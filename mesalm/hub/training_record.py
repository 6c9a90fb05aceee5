"""Data, tokens, loss and time from the journal of a run, as lines of a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mesalm.data.corpus_card import corpus_lines
from mesalm.markdown import plain
from mesalm.runs import RunRecord
from mesalm.wording import plural


def training_lines(run: Path | None) -> list[str]:
    """Return the lines, one fact each; where there is no run, one line that says so."""
    if run is None:
        return ["- no training journal comes with these weights, so training data, tokens and loss are unknown"]
    record = RunRecord(run)
    events, start = record.events, record.start
    lines = []
    if start:
        lines += _data_lines(start)
        lines.append(f"- seed {start['recipe'].get('seed')}; versions: {plain(_versions(start.get('versions', {})))}")
        if start["recipe"].get("init_from"):
            lines.append(f"- started from the weights of {plain(Path(start['recipe']['init_from']).name)}")
    lines += _loss_lines(events)
    end = next((event for event in reversed(events) if event["event"] in ("end", "stop")), None)
    if end is not None and start:
        lines.append(f"- hardware: {plain(_hardware(start))}{_time(end)}")
    return lines


def _data_lines(start: dict[str, Any]) -> list[str]:
    manifest_path = Path(start["prepared"]) / "manifest.json" if start.get("prepared") else None
    if manifest_path is None or not manifest_path.is_file():
        sources = start["recipe"]["data"]["sources"]
        return [f"- data: {plain('; '.join(_place(source) for source in sources))}"]
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    return corpus_lines(manifest)


def _place(source: dict[str, Any]) -> str:
    """Name a source of a recipe without the folders of the machine it was trained on."""
    files = source.get("files") or []
    files = [files] if isinstance(files, str) else files
    place = source.get("dataset") or ", ".join(Path(file).name for file in files)
    return f"{source['name']} ({place})" if place else str(source["name"])


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"


def _loss_lines(events: list[dict[str, Any]]) -> list[str]:
    lines = []
    steps = [event for event in events if event["event"] == "step" and event.get("loss") is not None]
    end = next((event for event in reversed(events) if event["event"] == "end"), None)
    if end is not None:
        begun = f", from {steps[0]['loss']:.4f} at step {steps[0]['step']:,}" if steps else ""
        loss = "not recorded" if end.get("loss") is None else f"{end['loss']:.4f} nats per token"
        lines.append(
            f"- {end['tokens']:,} tokens in {plural(end['step'], 'step')}; training loss at the end {loss}{begun}"
        )
    measured = [event for event in events if event["event"] == "valid" and event.get("loss") is not None]
    if measured:
        last, first = measured[-1], measured[0]
        bits = last.get("bits_per_byte")
        earlier = f" ({first['loss']:.4f} after {first['tokens']:,})" if len(measured) > 1 else ""
        lines.append(
            f"- held-out loss {last['loss']:.4f} nats per token"
            + (f", {bits:.4f} bits per byte," if bits is not None else "")
            + f" after {last['tokens']:,} tokens{earlier}"
        )
    return lines


def _hardware(start: dict[str, Any]) -> str:
    processes = start.get("world", 1)
    return f"{start.get('device', 'not recorded')}" + (f", {processes} processes" if processes > 1 else "")


def _time(end: dict[str, Any]) -> str:
    return f"; {end['seconds']:,.0f} seconds of training" if end.get("seconds") else ""
