"""The `soup` body: experts averaged in weight space, and the proof that the result is what it says.

The soup is loaded again as everything else will load it, and every layer's update is compared with the average of the
experts' updates: a soup that silently stayed one expert, or that an adapter's settings bent, does not get published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

from registry.artifacts import ADAPTER, WEIGHTS, Artifact, soup_weights
from registry.language_models import DTYPES, config_of, load_language_model, load_tokenizer, own_precision
from registry.methods import soup
from registry.reward_models import load_reward_model, with_score_head
from registry.updates import PREFIX, Expert, average_heads, expert_of, save_update
from specs.problems import UserError
from tasks.job import Job, Result
from tasks.memory import free_memory
from tasks.threads import use_threads

RULES = {"delta": soup.delta, "factors": soup.factors, "slerp": soup.slerp}
TOLERANCE = 1e-5
"""The largest difference of a layer's update from what it should be, relative to its norm."""


def average_experts(job: Job) -> Result:
    """Averages, checks and writes an adapter on the shared model (or whole weights)."""
    use_threads(job.execution)
    experts = job.many("experts")
    weights = soup_weights(job.artifact)
    if job.entry.rule == "weights":
        return _average_weights(job, experts, weights)
    shared = job.artifact.start
    read = [expert_of(artifact, shared) for artifact in experts]
    if all(not expert.update for expert in read):
        raise UserError("no expert differs from the model that all started from, so there is nothing to average")
    rule = RULES[job.entry.rule]
    try:
        mixed = rule([e.update for e in read], weights)
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_corners(rule, read)
    if not mixed:  # all the weight is on the shared model, which an artifact without weights stands for
        return Result({"experts": float(len(read)), "rank": 0.0})
    like = next(folder for a in experts if (folder := _adapter_folder(a, shared)))
    heads = average_heads(read, weights)
    save_update(mixed, heads, job.out / ADAPTER, like)
    wrong = _check_loaded(job, shared, read, mixed, heads, weights)
    norms = [_norm(e.update) for e in read]
    metrics = {"experts": float(len(read)), "rank": float(max(len(p[0].A) for p in mixed.values()))}
    metrics |= {"largest_error": wrong, "norm": _norm(mixed), "norm_experts": sum(norms) / len(norms)}
    if len(read) == 2 and min(norms) > 0:
        metrics["cosine"] = _inner(read[0].update, read[1].update) / (norms[0] * norms[1])
    return Result(metrics)


def _adapter_folder(artifact: Artifact, shared: Artifact) -> Any:
    while artifact.fingerprint != shared.fingerprint:
        assert artifact.folder is not None
        if (artifact.folder / ADAPTER).is_dir():
            return artifact.folder / ADAPTER
        artifact = artifact.start
    return None


def _check_corners(rule: Any, experts: Sequence[Expert]) -> None:
    """With all the weight on one expert, the rule must give that expert."""
    for number, expert in enumerate(experts):
        corner = rule([e.update for e in experts], [float(n == number) for n in range(len(experts))])
        for module, parts in expert.update.items():
            wanted = _product(parts)
            if _apart(_product(corner.get(module, ())), wanted) > TOLERANCE:
                raise AssertionError(f"the merge of `{expert.name}` alone is not `{expert.name}` at {module}")


def _check_loaded(
    job: Job,
    shared: Artifact,
    experts: Sequence[Expert],
    mixed: soup.Soup,
    heads: dict[str, Tensor],
    weights: Sequence[float],
) -> float:
    """Loads what was written, on the shared model without its weights. Its largest relative error; raises if it is no
    rounding, or if nothing has changed."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shared))
    model = model.to_empty(device="cpu")  # memory that nothing touches
    if heads:
        model = with_score_head(model, 0)
    loaded = PeftModel.from_pretrained(model, str(job.out / ADAPTER))
    saved = get_peft_model_state_dict(loaded)
    if not all(torch.equal(saved[PREFIX + name], head) for name, head in heads.items()):
        raise AssertionError("the soup was loaded with another head than the average of its experts'")
    layers = {n.removeprefix(PREFIX): m for n, m in loaded.named_modules() if hasattr(m, "get_delta_weight")}
    largest = 0.0
    same = [True] * len(experts)
    for module, parts in mixed.items():
        found = layers[module].get_delta_weight("default")
        found = found.T if layers[module].fan_in_fan_out else found  # as GPT-2 holds its weights
        largest = max(largest, _apart(found, _product(parts)))
        for number, expert in enumerate(experts):
            same[number] &= _apart(found, _product(expert.update.get(module, ()))) <= TOLERANCE
    if largest > TOLERANCE:
        raise AssertionError(f"the soup was loaded with an error of {largest:.2g} in a layer's update")
    distinct = any(
        _apart(_product(experts[0].update.get(m, ())), _product(e.update.get(m, ()))) > TOLERANCE
        for e in experts[1:]
        for m in mixed
    )
    for number, expert in enumerate(experts):
        if same[number] and distinct and weights[number] < 1 and max(weights) < 1:
            raise AssertionError(f"the soup has the weights of `{expert.name}`: averaging changed nothing")
    return largest


def _product(parts: Sequence[soup.Factor]) -> Tensor:
    """DeltaW of a module; a scalar zero where nothing touches it."""
    total = torch.zeros(())
    for part in parts:
        total = total + part.scaling * (part.B.float() @ part.A.float())
    return total


def _apart(one: Tensor, other: Tensor) -> float:
    scale = max(float(one.norm()), float(other.norm()))
    return float((one - other).norm()) / scale if scale else 0.0


def _norm(update: soup.Update) -> float:
    return float(_inner(update, update) ** 0.5)


def _inner(first: soup.Update, second: soup.Update) -> float:
    return sum(soup.inner(parts, second[module]) for module, parts in first.items() if module in second)


def _average_weights(job: Job, experts: Sequence[Artifact], weights: Sequence[float]) -> Result:
    """Whole weights, averaged in fp32 with three in memory at most, written in the precision that they are used in."""
    rewards = job.artifact.produces == "reward"
    kept = [(expert, weight) for expert, weight in zip(experts, weights, strict=True) if weight]
    model, mass = _whole(kept[0][0], rewards), kept[0][1]
    mixed = model.state_dict()
    for expert, weight in kept[1:]:
        other = _whole(expert, rewards).state_dict()
        mass += weight
        try:
            found = soup.average([mixed, other], [1 - weight / mass, weight / mass])
        except ValueError as error:
            raise UserError(f"`{kept[0][0].name}` and `{expert.name}` have no average: {error}") from None
        if not _equal(mixed, other) and (_equal(found, mixed) or _equal(found, other)):
            raise AssertionError(f"averaging `{expert.name}` with what was there changed nothing")
        mixed = found
        del other
        free_memory()
    metrics = {"experts": float(len(experts)), "parameters": float(sum(t.numel() for t in mixed.values()))}
    model.load_state_dict(mixed)
    if not rewards:
        model = model.to(DTYPES[own_precision(job.artifact.start)])
    model.save_pretrained(job.out / WEIGHTS, safe_serialization=True)
    load_tokenizer(job.artifact.start).save_pretrained(job.out / WEIGHTS)
    return Result(metrics)


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _whole(expert: Artifact, reward: bool) -> Any:
    """An expert's model in fp32, its adapters in its weights."""
    return (
        load_reward_model(expert, precision="fp32")[0]
        if reward
        else load_language_model(expert, precision="fp32").model
    )
