"""`leaplm data`: what text is known by name, where it comes from, whether it is here."""

from typing import Any

from training.data.known import KNOWN, STDLIB_LICENCE, data_root, get, local_paths
from training.provenance import provenance, write_json


def run(args: Any, command: list[str]) -> None:
    if args.action == "list":
        rows = [_stdlib(), *(_row(name, args.root) for name in KNOWN)]
        for row in rows:
            print(f"{row['name']:<18}{row['here'] or 'not here':<44}{row['what']}; {row['licence']}")
        print(
            f"\nany other data.name is a local text or JSONL file or folder, or a Hub set; root: {data_root(args.root)}"
        )
        if args.json:
            envelope = {"schema": "leaplm/1", "command": command, "provenance": provenance(), "results": []}
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.json, {**envelope, "sets": rows})
        return
    if args.name is None:
        raise ValueError(f"data get needs a name: {', '.join(KNOWN)}")
    if args.name == "stdlib":
        print("stdlib is the running Python's own source: it is always here")
        return
    if args.name not in KNOWN:
        raise ValueError(f"unknown set {args.name!r}: known are stdlib, {', '.join(KNOWN)}")
    known = KNOWN[args.name]
    here = local_paths(known, args.root) is not None
    for split, path in get(known, args.root).items():
        print(f"{args.name} {split}: {path}" + (" (was here)" if here else ""))


def _row(name: str, root: str | None) -> dict[str, Any]:
    known = KNOWN[name]
    paths = local_paths(known, root)
    here = str(next(iter(paths.values())).parent) if paths else None
    homes = sorted({source for source, _ in known.home.values()})
    return {"name": name, "what": known.what, "licence": known.licence, "home": homes, "here": here}


def _stdlib() -> dict[str, Any]:
    what = "the source of the running Python's standard library, split by top-level module"
    return {"name": "stdlib", "what": what, "licence": STDLIB_LICENCE, "home": [], "here": "always"}
