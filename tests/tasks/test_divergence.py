"""What is measured of a policy's distance from a reference is what its definition gives, every prefix read from scratch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import stages
import tiny
import torch
from asked import MESSAGES, PROMPTS
from guided import CPU, ENDS, ITS_PROMPTS, by_prefix, by_token, llama, logits_after, reward_model, reward_of, run
from guided import PROMPTS as IDS

from registry.dialogue_text import encode_prompt
from registry.language_models import load_language_model
from registry.methods.best_of_n import kl_bound, kl_estimate
from registry.methods.divergence import blockwise_bound
from specs.execution import Execution
from tasks.account import Account
from tasks.answers import answer
from tasks.divergence import Distances, Ruler, _side_by_side
from tasks.guidance import Guidance
from tasks.job import Log
from tasks.meter import Meter
from tasks.reader import Reader, next_token_logits
from tasks.rules import rule_of
from tasks.scores import Scores

STUDY = """\
models:
  base: {source: ./model, precision: fp32}
  other: {source: ./other, precision: fp32}
data:
  prompts: {source: ./prompts.jsonl, format: prompt}
rewards:
  score: {kind: length}
stages:
  sharp: {do: decode, method: sample, from: other, temperature: 0.5}
  few: {do: decode, method: sample, from: base, top_k: 3}
  greedy: {do: decode, method: greedy, from: other}
  best: {do: decode, method: best_of_n, from: base, reward: score, n: 3}
  worst: {do: decode, method: worst_of_n, from: other, reward: score, n: 3}
  mixed: {do: decode, method: mod, from: base, policies: {other: 0.4}}
  blocks: {do: decode, method: controlled_decoding, from: base, scorers: {score: 1.0}, block: 3, samples: 4}
  other_blocks: {do: decode, method: controlled_decoding, from: other, scorers: {score: 1.0}, block: 3, samples: 4}
"""
SAMPLES, NEW = 3, 7


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("divergence")
    for seed, name in enumerate(("model", "other")):
        tiny.language_model(folder / name, seed=seed, initializer_range=1.0)  # answers that are likely enough to repeat
    tiny.write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in MESSAGES])
    return stages.study(folder, STUDY)


class Measured:
    """A policy's answers and what is measured of them."""

    def __init__(self, view: Any, name: str, reference: str = "base", new: int = NEW, of: str = ""):
        policy, self.reference = view.artifact(name), view.artifact(reference)
        log, execution = Log(lambda event: None), Execution()
        self.account = Account(self.reference, view.home / f"{name} from {reference} {new} {of}")
        self.rule = rule_of(policy)
        (self.answers,) = answer(
            [policy], PROMPTS, samples=SAMPLES, max_new_tokens=new, seed=5, execution=execution, log=log,
            scores=Scores(execution, log), account=self.account,
        )  # fmt: skip
        self.found = self.distances(self.by_text() if self.rule.reward else None)

    def distances(self, rewards: np.ndarray | None) -> Distances:
        found = Ruler(self.account, PROMPTS, rows=8).distances(self.rule, self.answers, rewards)
        assert found is not None
        return found

    def by_text(self) -> np.ndarray:
        """A reward of all draws that is another for each text."""
        drawn = [[a.ids for a in row] for row in self.account.drawings[self.rule.source].answers]
        places = {ids: float(place) for place, ids in enumerate(sorted({ids for row in drawn for ids in row}))}
        return np.array([[places[ids] for ids in row] for row in drawn])

    def steps(self) -> Any:
        """Of each answer the log-probabilities of every next token under the models `base` and `other`, and its tokens."""
        for prompt, row in zip(PROMPTS, self.answers, strict=True):
            yield [self._of(prompt, a.ids) for a in row]

    @torch.inference_mode()
    def _of(self, prompt: Any, ids: tuple[int, ...]) -> Any:
        tokens = torch.tensor(ids)
        return tokens, {name: self._log_probs(name, prompt, ids) for name in ("base", "other")}

    def _log_probs(self, name: str, prompt: Any, ids: tuple[int, ...]) -> torch.Tensor:
        loaded = MODELS[name]
        start = encode_prompt(loaded.tokenizer, prompt.messages)
        rows = [logits_after(loaded.model, start + list(ids[:t])) for t in range(len(ids))]
        return torch.stack(rows).double().log_softmax(-1)


MODELS: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def models(view: Any) -> None:
    MODELS.update({name: load_language_model(view.artifact(name)) for name in ("base", "other")})


def by_definition(policy: torch.Tensor, reference: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    """Sums over an answer, from log-probabilities [tokens, vocabulary] (minus infinity: left out)."""
    at = torch.arange(len(tokens))
    log_rho = reference[at, tokens] - policy[at, tokens]
    kl = torch.where(policy.isfinite(), policy.exp() * (policy - reference), 0.0).sum()
    return {"rao_blackwell": float(kl), "k1": float(-log_rho.sum()), "k3": float((log_rho.exp() - 1 - log_rho).sum())}


def expected(measured: Measured, policy: Any) -> dict[str, np.ndarray]:
    rows = [
        [by_definition(policy(log_probs), log_probs["base"], tokens) for tokens, log_probs in row]
        for row in measured.steps()
    ]
    return {name: np.array([[one[name] for one in row] for row in rows]) for name in ("rao_blackwell", "k1", "k3")}


def test_a_language_model_beside_another_is_measured_at_the_temperature_it_is_drawn_at(view: Any) -> None:
    measured = Measured(view, "sharp")
    should = expected(measured, lambda log_probs: (log_probs["other"] / 0.5).log_softmax(-1))
    assert measured.found.estimates.keys() == should.keys()
    for name, values in should.items():
        assert measured.found.estimates[name] == pytest.approx(values, rel=1e-4, abs=1e-4)
    under = [
        [float(log_probs["base"][torch.arange(len(tokens)), tokens].sum()) for tokens, log_probs in row]
        for row in measured.steps()
    ]
    assert measured.found.reference == pytest.approx(np.array(under), rel=1e-4)


def test_where_tokens_are_left_out_k3_is_not_given(view: Any) -> None:
    measured = Measured(view, "few")

    def policy(log_probs: dict[str, torch.Tensor]) -> torch.Tensor:
        kept = log_probs["base"].topk(3).indices
        weights = torch.full_like(log_probs["base"], -torch.inf).scatter(1, kept, log_probs["base"].gather(1, kept))
        return weights.log_softmax(-1)

    should = expected(measured, policy)
    assert measured.found.estimates.keys() == {"rao_blackwell", "k1"}
    for name in ("rao_blackwell", "k1"):
        assert measured.found.estimates[name] == pytest.approx(should[name], rel=1e-4, abs=1e-4)


def test_the_reference_itself_is_at_no_distance(view: Any) -> None:
    found = Measured(view, "base").found.estimates
    assert np.abs(found["rao_blackwell"]).max() < 1e-9  # single precision gave -1e-5 a token of a large vocabulary
    assert max(np.abs(values).max() for values in found.values()) < 1e-4


def test_a_greedy_answer_is_as_far_as_it_is_unlikely(view: Any) -> None:
    measured = Measured(view, "greedy")
    assert measured.found.estimates.keys() == {"point_mass"}
    ((tokens, log_probs), *_) = next(iter(measured.steps()))
    exact = -float(log_probs["base"][torch.arange(len(tokens)), tokens].sum())
    assert measured.found.estimates["point_mass"][0] == pytest.approx([exact] * SAMPLES, rel=1e-4)


def test_best_of_n_of_the_reference_is_below_its_bound_where_answers_repeat(view: Any) -> None:
    measured = Measured(view, "best", new=1)
    found = measured.found.estimates
    assert found["bound"] == pytest.approx(np.full((len(PROMPTS), SAMPLES), kl_bound(3)), abs=1e-4)
    assert found["best_of_n"] == pytest.approx(kl_estimate(np.exp(measured.found.reference), 3), abs=1e-4)
    assert (found["best_of_n"] <= found["bound"] + 1e-4).all() and (found["best_of_n"] < found["bound"] - 1e-3).any()


def test_answers_of_one_reward_are_one_outcome_of_best_of_n(view: Any) -> None:
    measured = Measured(view, "best", new=4)
    drawn = [[a.ids for a in row] for row in measured.account.drawings[measured.rule.source].answers]
    rewards = measured.by_text() % 2  # two levels, each of many texts
    found = measured.distances(rewards).estimates["best_of_n"]
    for place, row in enumerate(measured.answers):
        for sample, chosen in enumerate(row):
            level = rewards[place, chosen.draw]
            others = [ids != chosen.ids and r == level for ids, r in zip(drawn[place], rewards[place], strict=True)]
            likely = np.exp(measured.found.reference[place, sample]) + sum(others) / (len(others) - 1)
            assert found[place, sample] == pytest.approx(kl_estimate(np.minimum(likely, 1.0), 3), abs=1e-4)
    assert found.mean() < measured.found.estimates["best_of_n"].mean() - 0.02
    nothing = measured.distances(np.zeros_like(rewards)).estimates["best_of_n"]  # the choice is by chance
    assert nothing.mean() < 0.05


def test_the_worst_of_n_of_another_model_adds_how_far_that_model_is(view: Any) -> None:
    measured = Measured(view, "worst", new=1)
    away = expected(measured, lambda log_probs: log_probs["other"])["k1"]
    found = measured.found.estimates
    assert found["bound"] == pytest.approx(kl_bound(3) + away, rel=1e-4, abs=1e-4)
    # Of n draws of the model itself: not of the reference, to which the answer is another surprise.
    own = np.exp(away + measured.found.reference)
    assert found["best_of_n"] == pytest.approx(kl_estimate(own, 3) + away, rel=1e-4, abs=1e-4)
    others = kl_estimate(np.exp(measured.found.reference), 3) + away
    assert np.abs(found["best_of_n"] - others).max() > 1e-3


@pytest.mark.parametrize("reference", ["base", "other"])
def test_a_guided_policy_is_measured_while_it_is_drawn_from_either_model(view: Any, reference: str) -> None:
    measured = Measured(view, "mixed", reference)
    rows = [
        [
            by_definition(
                (0.6 * log_probs["base"] + 0.4 * log_probs["other"]).log_softmax(-1), log_probs[reference], tokens
            )
            for tokens, log_probs in row
        ]
        for row in measured.steps()
    ]
    for name in ("rao_blackwell", "k1", "k3"):
        should = np.array([[one[name] for one in row] for row in rows])
        assert measured.found.estimates[name] == pytest.approx(should, rel=1e-4, abs=1e-4)


def test_blocks_have_a_bound_where_the_reference_draws_them_and_no_number_else(view: Any) -> None:
    measured = Measured(view, "blocks")
    lengths = torch.tensor([[float(a.tokens) for a in row] for row in measured.answers])
    assert measured.found.estimates.keys() == {"bound"}
    assert measured.found.estimates["bound"] == pytest.approx(blockwise_bound(lengths, 4, 3).numpy())
    assert Measured(view, "other_blocks").found.estimates == {}


@pytest.mark.parametrize("reference", [None, 2])
@torch.inference_mode()
def test_candidates_are_all_that_is_drawn_from_and_the_reference_has_its_whole_vocabulary(
    reference: int | None,
) -> None:
    base, judge = llama(0), reward_model(1)
    other = base if reference is None else llama(reference)
    reader = None if reference is None else Reader(next_token_logits(other), IDS, CPU)
    meter = Meter(reader)
    guidance = Guidance([(by_prefix(judge, ending=[]), 1.5)], candidates=6, meter=meter)
    alone = Guidance([(by_prefix(judge, ending=[]), 1.5)], candidates=6)
    found = run(base, guidance, temperature=0.7)
    assert found == run(base, alone, temperature=0.7), "to be measured changes nothing"
    for prompt, row in enumerate(found):
        for number, one in enumerate(row):
            sums = dict.fromkeys(("rao_blackwell", "k1", "k3"), 0.0)
            for t, token in enumerate(one.ids):
                logits = logits_after(base, IDS[prompt] + list(one.ids[:t])).double()
                kept = sorted(logits.topk(6).indices.tolist())
                judged = [reward_of(judge, ITS_PROMPTS[prompt] + list(one.ids[:t]) + [c]) for c in kept]
                policy = torch.full_like(logits, -torch.inf)
                policy[kept] = ((logits[kept] + 1.5 * torch.tensor(judged).double()) / 0.7).log_softmax(-1)
                its = logits_after(other, IDS[prompt] + list(one.ids[:t])).double().log_softmax(-1)
                step = by_definition(policy[None], its[None], torch.tensor([token]))
                sums = {name: sums[name] + step[name] for name in sums}
            measured = meter.sums[prompt, number]._asdict()
            for name, value in sums.items():
                assert measured[name] == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_what_was_drawn_before_a_process_died_is_taken_up_with_all_that_was_measured(view: Any) -> None:
    first = Measured(view, "mixed", of="a process that died")
    again = Measured(view, "mixed", of="a process that died")
    undisturbed = Measured(view, "mixed", of="another")
    assert again.account.recalled([again.rule.source]) == {again.rule.source: undisturbed.answers}
    for name, values in undisturbed.found.estimates.items():
        assert again.found.estimates[name] == pytest.approx(values)
        assert first.found.estimates[name] == pytest.approx(values)


def test_a_drawing_that_cannot_be_read_is_drawn_again(view: Any) -> None:
    first = Measured(view, "mixed", of="a power cut")
    (file,) = first.account.scratch.glob("*.json")
    file.write_bytes(b"")
    assert Measured(view, "mixed", of="a power cut").answers == first.answers


def test_a_token_that_rounding_puts_outside_the_nucleus_was_drawn_all_the_same(view: Any) -> None:
    """As where bf16 rounds otherwise when an answer is read again in another batch."""
    measured = Measured(view, "few", of="the edge")
    loaded = MODELS["base"]
    prompt = encode_prompt(loaded.tokenizer, PROMPTS[0].messages)
    unlikely = int(logits_after(loaded.model, prompt).argmin())
    assert measured.rule.top_k == 3
    (sums,) = _side_by_side(loaded.model, (prompt, [[unlikely]]), loaded.model, (prompt, [[unlikely]]), measured.rule)
    assert all(np.isfinite(value) for value in sums) and sums.k1 >= 0


def test_every_sample_of_every_prompt_is_measured_once_whatever_the_batch() -> None:
    base = llama(0)
    meters = [Meter(), Meter()]
    for rows, meter in zip((3, 64), meters, strict=True):
        run(base, Guidance([(by_token(llama(1)), 0.8)], meter=meter), rows=rows, samples=3, eos_ids=ENDS)
    assert meters[0].sums.keys() == meters[1].sums.keys() == {(p, s) for p in range(len(IDS)) for s in range(3)}
    for key, one in meters[0].sums.items():
        assert one == pytest.approx(meters[1].sums[key], rel=1e-4, abs=1e-4)
