"""A README.md beside an exported model: what it is, what it was trained on, what was measured of it, and how to load it.

Numbers are the records that a run keeps (RUN/records), as they stand: with their kind, error and contract. What is not known, such
as the licence of a file of one's own, is said to be unknown.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.flow import FlowRun
from eval.loading import LoadedRun
from eval.records import read_records
from training.data.known import KNOWN, STDLIB_LICENCE
from training.run_dir import RunDir

LOAD = {
    "hf": 'from transformers import AutoModelForCausalLM, AutoTokenizer\n\nmodel = AutoModelForCausalLM.from_pretrained("DIR")\ntokenizer = AutoTokenizer.from_pretrained("DIR")',
    "use-mtp": 'from transformers import AutoModelForCausalLM, AutoTokenizer\n\nmodel = AutoModelForCausalLM.from_pretrained("DIR")\ntokenizer = AutoTokenizer.from_pretrained("DIR")\n'
    'text = model.generate(**tokenizer("…", return_tensors="pt"), use_mtp=True)',
    "flow": 'from transformers import AutoTokenizer\n\nfrom flowlm import CLASS\n\nmodel = CLASS.from_pretrained("DIR")\ntokenizer = AutoTokenizer.from_pretrained("DIR")\n'
    "text = tokenizer.batch_decode(model.generate(None))",
    "images": 'from imm.model import ImageFlow\n\nmodel = ImageFlow.from_pretrained("DIR")',
    "speculators": 'from pathlib import Path\n\nfrom mtp.speculators import read_speculator\n\nhead = read_speculator(Path("DIR"))',
}  # fmt: skip
WHAT = {
    "hf": "The trunk of a leaplm run, as its own transformers class: a joint head of the run is not part of it.",
    "use-mtp": "The trunk and the sequential modules of a leaplm run, for `generate(use_mtp=True)`.",
    "flow": "A model of windows of text that a leaplm run trained: it writes in as many refinement steps as it is asked for.",
    "images": "An image model that a leaplm run trained: it draws in as many steps as it is asked for.",
    "speculators": "The joint head of a leaplm run in the speculators layout. It proposes tokens for its verifier and is no model alone.",
}  # fmt: skip
CONTRACT = (
    "block",
    "sampler",
    "nfe",
    "estimator",
    "steps",
    "temperature",
    "top_p",
    "batch",
    "dtype",
    "verify",
    "num_fewshot",
)


def model_card(loaded: LoadedRun | FlowRun, form: str) -> str:
    """Markdown, with the Hub's front matter. form: a format of `leaplm export`, or flow or images."""
    home = run_folder(Path(loaded.folder))
    base = (loaded.config.get("trunk") or {}).get("pretrained") if isinstance(loaded, LoadedRun) else None
    front = ["library_name: transformers", "tags: [leaplm]"]
    if base and not base.startswith((".", "/", "~")):
        front.append(f"base_model: {base}")
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {loaded.subject}, {loaded.model.num_parameters():,} parameters",
        WHAT[form],
        "```python\n" + LOAD[form].replace("CLASS", type(loaded.model).__name__) + "\n```",
        "## Training\n\n" + table(("", ""), training_rows(loaded, home)),
        "## Numbers\n\n" + numbers(home, form),
    ]
    return "\n\n".join(parts) + "\n"


def run_folder(model: Path) -> Path | None:
    """The run directory that a model folder, RUN/checkpoints/step-N/model, belongs to."""
    return next(
        (path for path in model.parents if (path / "checkpoints").is_dir() and (path / "config.yaml").is_file()), None
    )


def training_rows(loaded: LoadedRun | FlowRun, home: Path | None) -> Sequence[tuple[str, ...]]:
    if home is None:
        return [("run", "unknown: it was exported from a model folder that belongs to no run directory")]
    facts = RunDir(home).provenance()
    command = (home / "command.txt").read_text().split() if (home / "command.txt").is_file() else []
    step = re.search(r"step-(\d+)", loaded.folder)
    preset = command[command.index("train") + 1] if "train" in command[:-1] else "unknown"
    versions = ", ".join(f"{name} {number}" for name, number in (facts.get("versions") or {}).items() if number)
    changed = ", with changes" if facts.get("git_diff_sha256") else ""
    rows = [
        ("preset", Path(preset).name.removesuffix(".yaml")),
        ("steps, seed", f"{step[1] if step else 'unknown'}, {loaded.train_seed}"),
        ("averaged weights (EMA)", str(loaded.ema) if loaded.ema else "no"),
        *kind_rows(loaded),
        ("commit", f"{facts.get('git') or 'unknown'}{changed}"),
        ("machine", str(facts.get("hardware", "unknown"))),
        ("versions", f"python {facts.get('python', 'unknown')}, {versions}"),
    ]
    return rows


def kind_rows(loaded: LoadedRun | FlowRun) -> Sequence[tuple[str, ...]]:
    """What is trained, and on what."""
    config = loaded.config
    images, flow, data = (config.get(part) or {} for part in ("image", "flow", "data"))
    if images:
        return [
            ("objective", images.get("objective", "unknown")),
            ("data", f"images: {shown(images.get('name', 'unknown'))}"),
            ("licence of the data", "unknown: see where they come from"),
        ]
    on = [("data", data_name(data)), ("licence of the data", data_licence(data))]
    if not isinstance(loaded, LoadedRun):
        learned = [(word, shown(flow[word])) for word in ("start", "teacher") if flow.get(word)]
        return [("objective", flow.get("objective", "unknown")), *learned, *on]
    head = str(loaded.model.config.head or "none")
    return [("trunk", trunk_name(config.get("trunk") or {})), ("head", head), *on]


def trunk_name(trunk: dict[str, Any]) -> str:
    base = trunk.get("pretrained")
    if not base:
        return f"{trunk.get('architecture', 'unknown')}, from scratch"
    return f"{shown(base)}, {'frozen' if trunk.get('frozen') else 'trained on'}"


def data_name(data: dict[str, Any]) -> str:
    if data.get("suite"):
        return f"the suite {data['suite']}, generated"
    return shown(data["cases"]) if data.get("cases") else shown(data.get("name") or "unknown")


def data_licence(data: dict[str, Any]) -> str:
    if data.get("suite"):
        return "none needed: generated by this package"
    name = None if data.get("cases") else data.get("name")
    if name == "stdlib":
        return STDLIB_LICENCE
    return KNOWN[name].licence if name in KNOWN else "unknown: see where it comes from"


def shown(name: str) -> str:
    """Of a file of somebody's machine, its own name alone."""
    local = name.startswith((".", "/", "~")) or Path(name).exists()
    return f"{Path(name).name} (local)" if local else name


def numbers(home: Path | None, form: str) -> str:
    files = sorted((home / "records").glob("*.json")) if home and (home / "records").is_dir() else []
    records = [record for file in files for record in read_records(file)]
    if not records:
        return "None were measured: `leaplm perplexity RUN`, `leaplm probe RUN` and `leaplm speed RUN` keep theirs in the run."
    rows = []
    for one in records:
        error = f" ± {one['stderr']:.2g} ({one.get('stderr_over', 'unknown')})" if one.get("stderr") is not None else ""
        contract = {
            key: value for key, value in (one.get("contract") or {}).items() if key in CONTRACT and value is not None
        }
        told = ", ".join(f"{key} {value}" for key, value in contract.items())
        name = f"{one['metric']} ({one['score']})" if "score" in one else one["metric"]
        rows.append((name, one["on"], one["subject"], f"{one['value']:.5g}{error}", one["unit"], one["kind"], told))
    of = (
        ""
        if form != "hf"
        else "Rows of another subject than `trunk` are of the run's joint head, which is not in this folder.\n\n"
    )
    return of + table(("metric", "on", "subject", "value", "unit", "kind", "how"), rows)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )
