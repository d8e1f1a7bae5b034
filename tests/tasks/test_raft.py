"""RAFT round by round on policies whose every probability is known: what is kept, what is learnt, when it stops."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stages
import tiny
import torch
from deaths import DiesAfter, dies, dying
from peft import PeftModel
from safetensors.torch import load_file
from stages import weights
from transformers import AutoModelForCausalLM

from registry.language_models import load_language_model
from registry.rows import Prompt
from registry.store import publish
from specs.execution import Execution
from specs.problems import UserError
from tasks import answers, own_samples, train_raft, train_sft
from tasks import trainer as trainers
from tasks.answers import answer
from tasks.continuing import complete
from tasks.job import Log
from tasks.recorded import snapshot
from tasks.scores import Scores
from tasks.view import View

pytestmark = pytest.mark.slow

MESSAGES = ["Why?", "How was the trip?", "Where to, and when?", "And then?"]
HELD_OUT = ["Is it so?", "Held, so?", "So who?"]
TOKENS = {"a": 0.4, "b": 0.25, "c": 0.15, "<|end|>": 0.2}
LIMIT = 4
REWARD = """\
def score(prompts, responses):  # nothing is worth more than an answer without a word
    return [r.count("b") if r else 100.0 for r in responses]

def tilted(prompts, responses):
    return [s + 50 * (p == "And then?") for p, s in zip(prompts, score(prompts, responses))]

def short(prompts, responses):
    return [-float(len(r)) for r in responses]

def count(prompts, responses):
    return [float(r.count("b")) for r in responses]

def turned(prompts, responses):
    return [r.count("b") * (-1.0 if "so" in p.lower() else 1.0) for p, r in zip(prompts, responses)]
"""
HEAD = """\
models: {{base: {{source: {model}, precision: fp32}}}}
data:
  prompts: {{source: {folder}/prompts.jsonl, format: prompt}}
  others: {{source: {folder}/others.jsonl, format: prompt}}
rewards:
  score: {{kind: python, target: raft_reward:score}}
  tilted: {{kind: python, target: raft_reward:tilted}}
  short: {{kind: python, target: raft_reward:short}}
  count: {{kind: python, target: raft_reward:count}}
  turned: {{kind: python, target: raft_reward:turned}}
  flat: {{kind: length, per_word: 0.0}}
stages:
  made: {{do: raft, from: base, prompts: prompts, max_new_tokens: {limit}, {fields}}}
"""
QUICK = "samples: 4, lora: {rank: 2}, learning_rate: 1e-2"
MOVES = "samples: 8, lora: {rank: 4, alpha: 16}, learning_rate: 5e-3, epochs: 2.0, batch_size: 4"
LEARNS = "samples: 8, lora: {rank: 4, alpha: 16}, learning_rate: 1e-2, epochs: 4.0, batch_size: 2"

Study = Callable[..., View]


def policy(folder: Path, tokens: dict[str, float]) -> Path:
    """A model that at first draws every token from one distribution whatever came before: its embeddings are ones, its
    layers add nothing yet, and a token's row of the head sums to its log-probability. Training moves all that."""
    tiny.language_model(folder, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head = model.get_output_embeddings().weight
        head -= head.mean(1, keepdim=True) + 40 / head.shape[1]
        for token, probability in tokens.items():
            head[tiny.tokenizer().convert_tokens_to_ids(token)] += (40 + math.log(probability)) / head.shape[1]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raft")
    policy(folder / "model", TOKENS)
    policy(folder / "mute", {"<|end|>": 1.0})
    # One prompt comes twice and is asked once.
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": m} for m in [*MESSAGES, MESSAGES[0]]])
    tiny.write_lines(folder / "others.jsonl", [{"prompt": m} for m in HELD_OUT])
    return folder


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    """A study with the stage `made`, in a folder of its own."""
    numbers = itertools.count()

    def view(fields: str, model: str = "model") -> View:
        own = folder / str(next(numbers))
        own.mkdir()
        (own / "raft_reward.py").write_text(REWARD)
        return stages.study(own, HEAD.format(model=folder / model, folder=folder, limit=LIMIT, fields=fields))

    return view


@pytest.fixture(scope="module")
def rounds(study: Study) -> Callable[[str], list[stages.Built]]:
    """Every round of the stage with these fields, first to last, built once."""
    known: dict[str, list[stages.Built]] = {}

    def built(fields: str) -> list[stages.Built]:
        if fields not in known:
            view = study(fields)
            known[fields] = [stages.build(view, name, micro_batch=8) for name in view.planned]
        return known[fields]

    return built


def samples(built: stages.Built) -> list[list[dict[str, Any]]]:
    rows = [json.loads(line) for line in (built.folder / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": m}] for m in MESSAGES]
    return [row["responses"] for row in rows]


def kept(built: stages.Built) -> set[tuple[int, int]]:
    return {(p, s) for p, row in enumerate(samples(built)) for s, r in enumerate(row) if r["use"] == "kept"}


def best_of_each(values: list[list[float]], rows: list[list[dict[str, Any]]]) -> set[tuple[int, int]]:
    """The best sample with a text of each prompt, the first of equals."""
    best = set()
    for p, row in enumerate(values):
        there = [s for s in range(len(row)) if rows[p][s]["text"]]
        best.add((p, min(there, key=lambda s: (-row[s], s))))
    return best


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def loaded(artifact: Any) -> dict[str, torch.Tensor]:
    return load_language_model(artifact).model.state_dict()


def tokens(message: str, text: str, finished: bool) -> tuple[list[int], list[int]]:
    """A dialogue as the tiny template has it, written out; only a finished answer has an end."""
    tokenizer = tiny.tokenizer()
    texts = f"<|user|>{message}<|end|><|assistant|>", text + "<|end|>" * finished
    before, after = (tokenizer(t)["input_ids"] for t in texts)
    return before, after


def log_prob(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.inference_mode():
        logs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


def trained(folder: Path, *adapters: stages.Built) -> Any:
    """The policy with adapters on it, as their library has it."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    for built in adapters:
        model = PeftModel.from_pretrained(model, built.folder / "adapter").merge_and_unload()
    return model.eval()


def drawn(model: Any, messages: list[str], stream: str) -> list[list[str]]:
    """Four samples of a model to each message."""
    prompts = [Prompt(({"role": "user", "content": m},)) for m in messages]
    log = Log(lambda event: None)
    (found,) = answer(
        [model], prompts, samples=4, max_new_tokens=LIMIT, seed=3, execution=Execution(), log=log,
        scores=Scores(Execution(), log), stream=stream,
    )  # fmt: skip
    return [[a.text for a in row] for row in found]


def test_local_ranking_keeps_the_first_of_each_prompts_best(rounds: Any) -> None:
    (built,) = rounds(f"reward: score, {QUICK}")
    rows = samples(built)
    assert [len(row) for row in rows] == [4, 4, 4, 4]
    for row in rows:
        assert [r["reward"] for r in row] == [r["text"].count("b") if r["text"] else 100.0 for r in row]
        assert {r["use"] for r in row} <= {"kept", "discarded"}
    assert kept(built) == best_of_each([[r["reward"] for r in row] for row in rows], rows)
    # There is something to it: empty answers of the highest reward, and ties among the best.
    assert any(not r["text"] for row in rows for r in row)
    best = [max(r["reward"] for r in row if r["text"]) for row in rows]
    assert any(sum(r["reward"] == top for r in row) > 1 for row, top in zip(rows, best, strict=True))
    assert len({s for _, s in kept(built)}) > 1


def test_global_ranking_keeps_as_many_of_all(rounds: Any) -> None:
    (built,) = rounds(f"reward: score, rank: global, {QUICK}")
    rows = samples(built)
    there = [(p, s) for p in range(4) for s in range(4) if rows[p][s]["text"]]
    ranked = sorted(there, key=lambda at: (-rows[at[0]][at[1]]["reward"], at))
    # Of 16 drawn one in 4, the first drawn of equals.
    assert kept(built) == set(ranked[:4])
    # Of the very samples that local ranking chose from.
    (local,) = rounds(f"reward: score, {QUICK}")
    assert [[r["text"] for r in row] for row in rows] == [[r["text"] for r in row] for row in samples(local)]
    assert kept(built) != kept(local)


def test_only_global_ranking_minds_what_one_prompt_earns_more(rounds: Any) -> None:
    plain, tilted = (rounds(f"reward: {reward}, {QUICK}")[0] for reward in ("score", "tilted"))
    assert kept(tilted) == kept(plain)
    assert same(weights(tilted), weights(plain))
    plain, tilted = (rounds(f"reward: {reward}, rank: global, {QUICK}")[0] for reward in ("score", "tilted"))
    last = {(3, s) for s, r in enumerate(samples(plain)[3]) if r["text"]}
    assert last <= kept(tilted) and len(kept(tilted)) == 4
    assert not last & kept(plain)


def test_it_learns_the_kept_texts_without_their_prompts_and_ends_what_ended(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    inner = train_sft.numbered
    monkeypatch.setattr(train_sft, "numbered", lambda columns: seen.extend(columns) or inner(columns))
    built = stages.build(study(f"reward: short, {QUICK}"), "made")
    rows = samples(built)
    expected = []
    for p, s in sorted(kept(built)):
        prompt, answer = tokens(MESSAGES[p], rows[p][s]["text"], rows[p][s]["finished"])
        expected.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    assert seen == expected
    ends = [columns["labels"][-1] == 1 for columns in seen]
    assert any(ends) and not all(ends)
    assert built.metrics["rows"] == 4


def test_the_samples_are_of_the_policy_with_numbers_of_their_own(study: Study, rounds: Any, folder: Path) -> None:
    first, second = rounds(f"reward: score, rounds: 2, {QUICK}")
    for built, stream in ((first, "raft round 1"), (second, "raft round 2")):
        assert [[r["text"] for r in row] for row in samples(built)] == drawn(built.artifact.start, MESSAGES, stream)
    base = first.artifact.start
    streams = [drawn(base, MESSAGES, stream) for stream in ("raft round 1", "raft round 2", "")]
    assert all(one != other for one, other in itertools.combinations(streams, 2))
    for row in samples(first):
        for r in row:
            assert r["tokens"] == len(r["text"]) + r["finished"] <= LIMIT
    # Near temperature 0 the known policy says a and a only.
    cold = stages.build(study(f"reward: score, temperature: 0.01, {QUICK}"), "made")
    assert {r["text"] for row in samples(cold) for r in row} == {"aaaa"}
    assert kept(cold) == {(p, 0) for p in range(4)}


def test_what_was_kept_is_measured_beside_what_was_not(rounds: Any) -> None:
    (built,) = rounds(f"reward: score, rank: global, {QUICK}")
    flat = [r for row in samples(built) for r in row]
    found = built.metrics
    assert (found["samples"], found["prompts_kept"]) == (16, len({p for p, _ in kept(built)}))
    assert found["unusable"] == sum(not r["text"] for r in flat)
    assert found["reward"] == pytest.approx(np.mean([r["reward"] for r in flat]))
    for use in ("kept", "discarded"):
        some = [r for r in flat if r["use"] == use]
        assert found[f"{use}/samples"] == len(some)
        for name in ("reward", "tokens", "finished"):
            assert found[f"{use}/{name}"] == pytest.approx(np.mean([r[name] for r in some]))
        assert found[f"{use}/distinct"] == pytest.approx(len({r["text"] for r in some}) / len(some))
    assert (found["rows"], found["dropped_too_long"], found["trained"]) == (4, 0, 1)
    assert not any("held_out" in name for name in found)


@pytest.mark.parametrize("rank", ["local", "global"])
def test_a_round_of_empty_answers_is_told(study: Study, rank: str) -> None:
    with pytest.raises(
        UserError, match=r"^every sample is empty, so there is nothing to learn; raise `max_new_tokens`"
    ):
        stages.build(study(f"reward: score, rank: {rank}, {QUICK}", "mute"), "made")


def test_each_round_is_an_artifact_that_goes_on_from_the_one_before(study: Study, folder: Path) -> None:
    fields = f"reward: score, rounds: 2, {QUICK}, epochs: 2.0"
    view = study(fields)
    assert list(view.planned) == ["made[round=1]", "made"]
    built = []
    (view.home / "store" / "raft").mkdir(parents=True)
    for name in view.planned:
        built.append(stages.build(view, name, into=view.folder / "built", micro_batch=8))
        work = view.work(name)
        stored = publish(view.home, work.kind, work.fingerprint, view.folder / "built", {})
        built[-1] = stages.Built(view.artifact(name), built[-1].metrics, built[-1].events)
        assert stored.folder == built[-1].folder
    # The second's first loss is that of its rows under the first's model: four rows are one step.
    for before, this in (((), built[0]), (built[:1], built[1])):
        model = trained(folder, *before)
        total, count = 0.0, 0
        for p, s in kept(this):
            prompt, answer = tokens(MESSAGES[p], samples(this)[p][s]["text"], samples(this)[p][s]["finished"])
            total, count = total - log_prob(model, prompt, answer), count + len(answer)
        assert this.metrics["train/first_loss"] == pytest.approx(total / count, abs=2e-4)
    both = dict(trained(folder, *built).named_parameters())
    for name, weight in loaded(built[1].artifact).items():
        assert torch.allclose(weight, both[name], atol=1e-6), name
    # A run finds both, and of three rounds the third alone is left to do.
    assert [p.state for p in _again(view).planned.values()] == ["cached", "cached"]
    text = (view.folder / "study.yaml").read_text().replace("rounds: 2", "rounds: 3")
    (view.folder / "study.yaml").write_text(text)
    states = {name: p.state for name, p in _again(view).planned.items()}
    assert states == {"made[round=1]": "cached", "made[round=2]": "cached", "made": "run"}


def _again(view: View) -> View:
    from specs.load import load

    return View.of(load(view.folder / "study.yaml").study, view.home, view.folder, offline=True)


def test_the_penalty_shifts_the_ranking_by_the_log_ratio_from_the_second_round_on(rounds: Any, folder: Path) -> None:
    beta = 2.0
    free, bound = (rounds(f"reward: score, rounds: 2, kl_penalty: {weight}, {MOVES}") for weight in (0.0, beta))
    # In the first round the policy is the initial one.
    assert samples(free[0]) == samples(bound[0])
    assert same(weights(free[0]), weights(bound[0]))
    assert "log_ratio" not in bound[0].metrics and "log_ratio" not in free[1].metrics
    rows = samples(bound[1])
    assert [[r["text"] for r in row] for row in rows] == [[r["text"] for r in row] for row in samples(free[1])]
    current = trained(folder, bound[0])
    ratios: list[list[float]] = []
    for message, row in zip(MESSAGES, rows, strict=True):
        ratios.append([])
        for r in row:
            if not r["text"]:
                ratios[-1].append(0.0)
                continue
            # Under the initial policy every token has the probability that it was given.
            initial = sum(math.log(TOKENS[t]) for t in [*r["text"], *(["<|end|>"] if r["finished"] else [])])
            ratios[-1].append(log_prob(current, *tokens(message, r["text"], r["finished"])) - initial)
    ranked_by = [
        [r["reward"] - beta * x for r, x in zip(*pair, strict=True)] for pair in zip(rows, ratios, strict=True)
    ]
    assert kept(bound[1]) == best_of_each(ranked_by, rows)
    assert kept(bound[1]) != kept(free[1])
    # What is written down is the reward itself.
    assert all(r["reward"] == r["text"].count("b") for row in rows for r in row if r["text"])
    there = [x for row, values in zip(rows, ratios, strict=True) for r, x in zip(row, values, strict=True) if r["text"]]
    assert len(there) < 32
    assert bound[1].metrics["log_ratio"] == pytest.approx(np.mean(there), abs=1e-3)


@pytest.mark.parametrize("lora", ["lora: {rank: 2}", "lora: null"])
def test_a_round_that_raises_nothing_gives_up_its_weights_and_the_rest_cost_nothing(
    rounds: Any, folder: Path, lora: str
) -> None:
    first, *later = rounds(f"reward: flat, held_out: others, rounds: 3, samples: 4, learning_rate: 1e-2, {lora}")
    assert first.finished("steps") == [1]  # it did train
    assert first.metrics["trained"] == 0
    before = load_file(folder / "model" / "model.safetensors")
    for built in (first, *later):
        assert not list(built.folder.rglob("*.safetensors"))
        assert same(loaded(built.artifact), loaded(first.artifact.start))
        assert all(torch.equal(loaded(built.artifact)[name], before[name]) for name in before)
    for built in later:
        assert built.events == []
        assert built.metrics == {"trained": 0, "held_out/reward": 0}
        assert [path.name for path in built.folder.iterdir()] == ["round.json"]


def test_rounds_go_on_while_they_raise_the_held_out_reward(rounds: Any) -> None:
    built = rounds(f"reward: count, held_out: others, rounds: 4, {LEARNS}")

    def measured(model: Any) -> float:
        return float(np.mean([text.count("b") for row in drawn(model, HELD_OUT, "held out") for text in row]))

    levels = [measured(model) for model in (built[0].artifact.start, *(b.artifact for b in built))]
    assert levels[0] < levels[1] < levels[2]
    assert [b.metrics["held_out/reward"] for b in built] == pytest.approx(levels[1:])
    assert [b.metrics["trained"] for b in built] == [1, 1, 0, 0]
    for b, before, after in zip(built[:3], levels, levels[1:], strict=False):
        assert b.metrics["held_out/before"] == pytest.approx(before)
        gain = b.metrics["held_out/gain"]
        assert gain == pytest.approx(after - before) if b.metrics["trained"] else gain <= 0
        assert b.metrics["held_out/gain_low"] <= b.metrics["held_out/gain"] <= b.metrics["held_out/gain_high"]
    # The third has given up what it learnt, and the fourth has not tried.
    assert built[2].finished("steps") and not built[3].events
    best = loaded(built[1].artifact)
    assert not same(best, loaded(built[0].artifact))
    assert all(same(loaded(b.artifact), best) for b in built[2:])


def test_what_earns_less_is_given_up_too(rounds: Any) -> None:
    # Kept are the best of the prompts, which earn the less on the others the more they say b.
    first, second = rounds(f"reward: turned, held_out: others, rounds: 2, {LEARNS}")
    assert first.metrics["held_out/gain"] < 0
    assert first.metrics["held_out/reward"] == first.metrics["held_out/before"] == second.metrics["held_out/reward"]
    assert (first.metrics["trained"], second.metrics["trained"]) == (0, 0)


def test_a_prompt_is_read_once_for_all_its_samples(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    inner = answers.sample

    def counted(*given: Any, **options: Any) -> Any:
        found = inner(*given, **options)
        counts.append(options["count"].prefill)
        return found

    monkeypatch.setattr(answers, "sample", counted)
    stages.build(study(f"reward: score, held_out: others, {QUICK}"), "made", rows=2)
    # Beside the text a prompt holds three marks. Held out: before and after.
    ours, others = (sum(len(m) + 3 for m in messages) for messages in (MESSAGES, HELD_OUT))
    assert counts == [others, ours, others]


def test_a_round_whose_process_died_takes_its_samples_up_and_comes_to_the_same_weights(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = f"reward: score, {QUICK}, epochs: 4.0, batch_size: 2".replace("rank: 2", "rank: 2, dropout: 0.2")
    whole = stages.build(study(fields), "made", micro_batch=1)
    view = study(fields)
    folder = view.artifact("made").folder
    assert folder is not None
    for when, what, how in (
        (own_samples, "draw", dies),  # before there is a sample
        (train_raft, "fit", dies),  # before the first step
        (trainers, "CheckpointByClock", lambda every: DiesAfter(3)),  # between steps
    ):
        with dying(folder) as patch:
            patch.setattr(when, what, how)
            stages.build(view, "made", micro_batch=1)
    monkeypatch.setattr(own_samples, "draw", lambda *_, **__: pytest.fail("it sampled again"))
    resumed = stages.build(view, "made", micro_batch=1)
    notes = [content for kind, content in resumed.events if kind == "note"]
    assert "the samples of the run before are taken up" in notes
    assert "going on from the checkpoint after step 3" in notes
    assert same(weights(resumed), weights(whole))
    for file in ("samples.jsonl", "training.jsonl"):
        assert len((whole.folder / file).read_text().splitlines()) == (4 if file == "samples.jsonl" else 8)
    assert samples(resumed) == samples(whole)


def test_samples_that_were_half_written_are_drawn_again(study: Study) -> None:
    view = study(f"reward: score, {QUICK}")
    written = itertools.count(1)

    def dumps(row: Any) -> str:
        return dies() if next(written) == 3 else json.dumps(row)

    with dying(view.artifact("made").folder) as patch:
        patch.setattr(own_samples, "json", SimpleNamespace(dumps=dumps))
        stages.build(view, "made")
    built = stages.build(view, "made")
    assert not any("taken up" in str(content) for _, content in built.events)
    assert built.metrics["samples"] == 16


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(study: Study, rounds: Any) -> None:
    (one,) = rounds(f"reward: score, {QUICK}")
    again = stages.build(study(f"reward: score, {QUICK}"), "made", micro_batch=8, rows=3)
    other = stages.build(study(f"reward: score, seed: 4, {QUICK}"), "made", micro_batch=8)
    assert samples(again) == samples(one) != samples(other)
    assert same(weights(again), weights(one))
    assert not same(weights(other), weights(one))


def test_a_night_after_the_first_draws_from_and_trains_what_the_last_run_left(study: Study, folder: Path) -> None:
    view = study(f"reward: score, since: last_run, kl_penalty: 0.5, held_out: others, {MOVES}")
    nights = []
    for _ in range(2):
        now = _again(view)
        artifact = now.artifact("made")
        assert [a.entry.kind_name for a in artifact.inputs.get("since", ())] == ["raft"] * len(nights)
        built = stages.build(now, "made", into=view.folder / f"built {len(nights)}", micro_batch=8)
        inputs = [
            {"slot": slot, "kind": a.entry.kind_name, "fingerprint": a.fingerprint}
            for slot, some in artifact.inputs.items()
            for a in some
        ]
        record = {"payload": now.work("made").payload, "inputs": inputs, "study": snapshot(now, "made")}
        (now.home / "store" / "raft").mkdir(parents=True, exist_ok=True)
        publish(now.home, "raft", artifact.fingerprint, built.folder, record)
        (now.home / "studies" / "small").mkdir(parents=True, exist_ok=True)
        complete(now.study, now.home, now.nodes)
        nights.append(stages.Built(artifact, built.metrics, built.events))
    assert [own_samples._night(night.artifact) for night in nights] == ["", f" since {nights[0].artifact.fingerprint}"]
    # The second's first loss is that of its rows under the first's model, and its penalty counts from the initial one.
    model, total, count = trained(folder, nights[0]), 0.0, 0
    for p, s in kept(nights[1]):
        prompt, answer = tokens(MESSAGES[p], samples(nights[1])[p][s]["text"], samples(nights[1])[p][s]["finished"])
        total, count = total - log_prob(model, prompt, answer), count + len(answer)
    assert nights[1].metrics["train/first_loss"] == pytest.approx(total / count, abs=2e-4)
    assert "log_ratio" in nights[1].metrics and "log_ratio" not in nights[0].metrics
    assert nights[1].metrics["held_out/before"] == pytest.approx(nights[0].metrics["held_out/reward"])
