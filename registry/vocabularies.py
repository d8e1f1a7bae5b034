"""Whether a guide can read the tokens of the policy it guides, by the tokenizers' files: told before anything runs.

A tokenizer that is not on this machine yet, or has no `tokenizer.json`, is left to the stage that loads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from registry.models import CATALOGUE, hub_cache, local_folder, packaged_fingerprint
from registry.precision import resolve
from registry.store import find
from specs.graph import Graph, Node
from specs.models import Model
from specs.problems import Path as SpecPath
from specs.problems import UserError
from specs.rewards import Classifier
from specs.sources import origin
from specs.study import Study, entries

TOKENS = {"args": ("reward",), "cards": ("reward",), "controlled_decoding": ("scorers",), "genarm": ("guides",)} | {
    "mod": ("policies",),
    "transfer_q": ("baseline",),
}
"""By method, what reads the policy's tokens."""


def problems(study: Study, home: Path) -> Iterator[tuple[SpecPath, str]]:
    """Guides whose tokens are not those of the policy."""
    graph = Graph(entries(study))
    for name, node in graph.nodes.items():
        inputs = list(graph.inputs(name)) if node.entry.kind_name == "decode" else []
        ours = next((_vocabulary(graph, member, home) for slot, member in inputs if slot == "from"), None)
        for slot, member in inputs:
            reads = slot in TOKENS.get(getattr(node.entry, "method", ""), ())
            # Of blocks a reward scores the text.
            if reads and ours is not None and (slot != "scorers" or graph.nodes[member].produces == "prefix scorer"):
                theirs = _vocabulary(graph, member, home)
                told = None if theirs is None else difference(ours, theirs)
                if told is not None:
                    yield (node.section, name, slot), f"`{member}` cannot guide this: {told}"


def difference(ours: dict[str, int], theirs: dict[str, int]) -> str | None:
    """In what two tokenizers number tokens differently."""
    for token in sorted(ours.keys() | theirs.keys(), key=lambda t: ours.get(t, theirs.get(t, 0))):
        if ours.get(token) != theirs.get(token):
            policy, guide = (f"number {of[token]}" if token in of else "unknown" for of in (ours, theirs))
            return (
                f"they have different vocabularies: token {token!r} is {policy} to the policy and {guide} to the guide, which reads "
                "the policy's own tokens"
            )
    return None


def _vocabulary(graph: Graph, name: str, home: Path) -> dict[str, int] | None:
    """The tokens of the external model below and their numbers, if its tokenizer is here."""
    for below in sorted(graph.lineage(name)):
        folder = _folder(graph.nodes[below], home)
        if folder is not None and (folder / "tokenizer.json").is_file():
            return _read(folder / "tokenizer.json")
    return None


def _folder(node: Node, home: Path) -> Path | None:
    entry = node.entry
    if not isinstance(entry, Model | Classifier):
        return None
    if isinstance(entry, Model) and origin(entry.source, entry.revision) == "catalogue":
        packaged = CATALOGUE.get(entry.source)
        if packaged is None:
            return None
        if entry.via == "hub":
            return hub_cache(packaged.hub, packaged.revision)
        stored = (find(home, "model", packaged_fingerprint(packaged, resolve(p, 0))) for p in ("bf16", "fp32"))
        return next((one.folder for one in stored if one is not None), None)
    if entry.revision is not None:
        return hub_cache(entry.source, entry.revision)
    try:
        return local_folder(entry.source)
    except UserError:  # a variable in it is not set, which is told of the model itself
        return None


@cache
def _read(path: Path) -> dict[str, int] | None:
    try:
        tree = json.loads(path.read_bytes())
        vocabulary = tree["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: pairs in the order of their numbers
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        return {**vocabulary, **{added["content"]: added["id"] for added in tree.get("added_tokens", ())}}
    except (OSError, ValueError, KeyError, TypeError):  # whoever loads it says what is wrong with it
        return None
