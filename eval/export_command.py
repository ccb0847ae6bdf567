"""`leaplm export RUN`: a run as a folder of its own, with its tokenizer and a card of its numbers.

A trunk, or a head in a form that others read, needs this package no more; a flow language model or an image model is loaded by the
class of this package that the card names.
"""

from pathlib import Path
from typing import Any

from eval.flow import FlowRun, load_flow
from eval.loading import load_run, model_type, run_facts
from eval.model_card import model_card
from eval.records import record, write_records
from flowlm import MODEL_TYPES
from imm.model import ImageFlowConfig
from mtp.export import export
from training.run_dir import model_folder


def run(args: Any, command: list[str]) -> None:
    out = args.out or Path(args.run) / f"export-{args.format}"
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give another --out")
    if args.verifier and args.format != "speculators":
        raise ValueError(f"--verifier {args.verifier}: {args.format} names none, leave it out")
    kind = model_type(args.run)
    if kind in (*MODEL_TYPES, ImageFlowConfig.model_type):
        if args.format != "hf":
            raise ValueError(f"{args.run} has no trunk and no joint head, which {args.format} is of: take --format hf")
        loaded: Any = load_flow(args.run) if kind in MODEL_TYPES else load_images(args.run)
        form = "flow" if kind in MODEL_TYPES else "images"
        loaded.model.save_pretrained(out)
    else:
        loaded, form = load_run(args.run), args.format
        export(loaded.model, form, out, args.verifier or (loaded.config.get("trunk") or {}).get("pretrained"))
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(out)
    (out / "README.md").write_text(model_card(loaded, form), encoding="utf-8")
    if args.json:
        size = sum(p.numel() for p in loaded.model.parameters())
        facts: dict[str, Any] = {
            "on": args.format,
            "subject": loaded.subject,
            "kind": "exact",
            "unit": "parameters",
            "run": loaded.name,
        }
        files = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
        write_records(args.json, command, [record("parameters", size, **facts)], folder=str(out), files=files)
    print(out)


def load_images(name: str) -> FlowRun:
    """As a text's run, without a tokenizer."""
    from eval.images.drawing import load_image_run

    loaded, facts = load_image_run(name), run_facts(name)[0]
    ema = facts.get("training", {}).get("ema")
    return FlowRun(name, loaded.model, None, loaded.subject, facts.get("seed"), ema, facts, str(model_folder(name)))
