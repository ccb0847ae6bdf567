"""`leaplm sample` and `leaplm quality`: text that a run writes, and what it is worth without a verifier."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eval.flow import load_flow, samplings
from eval.flow_samples import draw_flow
from eval.loading import load_run, model_type
from eval.quality import COMPARED, NGRAMS, quality
from eval.records import write_records, written_by
from eval.samples import draw, held_out_prompts, read_samples, write_samples
from eval.tables import print_row
from flowlm import MODEL_TYPES
from flowmap.warp import Warp


def sample(args: Any, command: list[str]) -> None:
    kinds = {model_type(run) == "leaplm-image" for run in args.runs}
    if len(kinds) > 1:
        raise ValueError("these runs write text and draw images: sample them apart")
    if True in kinds:
        from eval.images.command import sample_images

        return sample_images(args, command)
    rows = []
    for name in args.runs:
        if model_type(name) in MODEL_TYPES:
            rows += _flow_samples(name, args)
            continue
        run = load_run(name)
        if args.prompt is not None:
            prompts = [(args.prompt, "")] * args.num
        else:
            prompts = held_out_prompts(run, args.num, args.prompt_tokens, args.new)
        prompts = [prompt for prompt in prompts for _ in range(args.repeats)]
        for temperature in args.temperatures:
            warp = Warp(temperature, args.top_p)
            how: dict[str, Any] = {"threshold": args.confidence, "drawn": args.drawn}
            rows += draw(
                run, prompts, new=args.new, warp=warp, seed=args.seed, block=args.block, batch=args.batch, **how
            )
    if args.out:
        write_samples(args.out, rows)
        print(f"{args.out}: {len(rows)} samples")
    if args.json:
        write_records(args.json, command, [], samples=rows)
    if not args.out and not args.json:
        for row in rows:
            drafts = row.get("drafts", [])[:-1]
            calls = f", nfe {row['contract']['nfe']}" if "drafts" in row else ""
            if "decoder_calls" in row["contract"]:
                calls += f" + {row['contract']['decoder_calls']} of its decoder"
            print(f"--- {row['subject']}, temperature {row['contract']['temperature']:g}{calls}")
            for number, draft in enumerate(drafts, 1):
                print(f"{number:4}: {draft}")
            print(row["prompt"] + "|" + "|".join(row["blocks"]))


def _flow_samples(name: str, args: Any) -> list[dict[str, Any]]:
    """For every number of steps and temperature."""
    if args.confidence is not None:
        raise ValueError(f"{name} refines windows: leave --confidence out, and set --steps")
    run, rows = load_flow(name), []
    room = run.model.config.length
    if args.prompt is not None:
        prompts = [(args.prompt, "")] * args.num
    else:
        prompts = held_out_prompts(run, args.num, min(args.prompt_tokens, room // 2), args.new)
    prompts = [prompt for prompt in prompts for _ in range(args.repeats)]
    asked = SimpleNamespace(block=args.block, decoder=args.decoder, **vars(args.refining))
    for temperature in args.temperatures:
        for how in samplings(run, args.steps, args.refining.sampler, Warp(temperature, args.top_p), args.seed, asked):
            rows += draw_flow(run, prompts, how, new=args.new, batch=args.batch)
    return rows


def score(args: Any, command: list[str]) -> None:
    judge = load_run(args.judge) if args.judge else None
    rows = [row for path in args.samples for row in read_samples(path)]
    records = quality(rows, judge, Path(args.samples[0]).stem, args.mauve)
    rows_of: dict[str, dict[str, dict[str, Any]]] = {}
    for r in records:
        rows_of.setdefault(way(r), {})[f"{r['metric']}{r.get('ngram', '')}"] = r
    shown = {name: label for name, label in COLUMNS.items() if any(name in cells for cells in rows_of.values())}
    print_row("", *shown.values())
    for told, cells in rows_of.items():
        print_row(told, *(_with_error(cells[name]) if name in cells else "–" for name in shown))
    if args.json:
        write_records(args.json, command, records)


COLUMNS = {
    "tokens_per_forward": "tokens per pass", "judge_nll": "judge NLL", "entropy": "entropy",
    **{f"distinct_n{n}": f"distinct-{n}" for n in NGRAMS}, "repetition": "repetition",
    **{f"ngram_kl{n}": f"{n}-gram KL" for n in COMPARED}, "brier_lm": "BrierLM", "mauve": "MAUVE",
}  # fmt: skip


def way(r: dict[str, Any]) -> str:
    """Who wrote it and how."""
    contract = r["contract"]
    block, nfe = contract.get("block"), contract.get("nfe")
    subject = written_by(r)
    told = [subject if not block or block == 1 else f"{subject} K={block}"]
    if contract.get("threshold") is not None:
        told.append(f"> {contract['threshold']:g}" + (" drawn" if contract.get("drawn") else ""))
    if "sampler" in contract:
        told.append(f"{contract['sampler']}, nfe {nfe}")
    if contract.get("temperature") is not None:
        told.append(f"T {contract['temperature']:g}")
    return ", ".join(told)


def _with_error(r: dict[str, Any]) -> str:
    return f"{r['value']:.3f}" + (f" ± {r['stderr']:.3f}" if "stderr" in r else "")
