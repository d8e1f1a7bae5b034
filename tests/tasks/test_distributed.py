"""One body in two processes: the same losses and weights as in one, and a failure that is told once."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import split_on_processors
import stages
import tiny
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from deaths import DiesAfter, dying
from safetensors.torch import load_file

from specs.execution import Execution
from tasks import child, distributed
from tasks import trainer as trainers
from tasks.job import Event, Job, Log

TEN = [{"prompt": f"Number {i}?", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(10)]
FIELDS = "batch_size: 4, epochs: 2.0, learning_rate: 1e-2"
KINDS = {
    "sft": "do: sft, from: base, data: pairs",
    "whole": "do: sft, from: base, data: pairs, lora: null",
    "reward_model": "do: reward_model, from: base, data: pairs",
    "arm": "do: autoregressive_reward_model, from: base, data: pairs, beta: 0.1",
    "dpo": "do: dpo, from: base, data: pairs",
    "prefix": "do: prefix_scorer, loss: prefix_bt, from: base, data: pairs",
    "rl": "do: rl, from: base, prompts: prompts, reward: length, samples: 2, max_new_tokens: 5",
    "bond": "do: bond, from: base, prompts: prompts, reward: length, max_new_tokens: 5",
    "rrhf": "do: rrhf, from: base, data: prompts, reward: length, max_new_tokens: 5",
    "qrpo": "do: qrpo, from: base, data: rolls, reward: cal, beta: 0.5",
    "q": "do: prefix_scorer, loss: cd_q, from: base, responses: rolls, reward: length",
    "raft": "do: raft, from: base, prompts: prompts, held_out: others, reward: length, samples: 2, max_new_tokens: 5",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def study(tmp_path: Path, model: Path) -> Callable[[str, str], Any]:
    def made(
        kind: str, fields: str = FIELDS, rows: int = 8, model: Path = model, reward: str = "{kind: length}"
    ) -> Any:
        tiny.write_lines(tmp_path / "pairs.jsonl", TEN[:rows])
        tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in TEN[:rows]])
        tiny.write_lines(tmp_path / "others.jsonl", [{"prompt": "And then?"}, {"prompt": "Why?"}])
        return stages.study(
            tmp_path,
            f"""\
models: {{base: {{source: {model}, precision: fp32}}}}
data:
  pairs: {{source: ./pairs.jsonl, format: preference}}
  prompts: {{source: ./prompts.jsonl, format: prompt}}
  others: {{source: ./others.jsonl, format: prompt}}
rewards: {{length: {reward}}}
stages:
  rolls: {{do: sample, from: base, prompts: prompts, samples: 4, max_new_tokens: 5}}
  cal: {{do: calibrate, reward: length, reference: base, prompts: prompts, samples: 8, max_new_tokens: 5}}
  made: {{{KINDS[kind]}, {fields}}}
""",
        )

    return made


def together(view: Any, out: Path, **execution: Any) -> tuple[Event, list[Event]]:
    """The stage in two processes on the processor."""
    artifact = view.artifact("made")
    out.mkdir()
    events: list[Event] = []
    job = Job(artifact, out, out.with_name("scratch"), Execution(**{"threads": 2} | execution), Log(events.append))
    module, function = stages.BODIES[artifact.entry.kind_name].split(":")
    return distributed.launch(f"{module}:{function}", job, 2, events.append), events


def compare(view: Any, folder: Path, micro_batch: int = 2) -> None:
    """Builds the stage in one process and in two, and expects the same."""
    for needed in ("rolls", "cal"):
        if needed in view.artifact("made").entry.model_dump().values():
            stages.build(view, needed)
    alone = stages.build(view, "made", into=folder / "alone", micro_batch=micro_batch)
    (outcome, content), events = together(view, folder / "two", micro_batch=micro_batch)
    assert outcome == "done", content
    for name in ("train/first_loss", "train/last_loss"):
        assert content["metrics"][name] == pytest.approx(alone.metrics[name], abs=2e-4)
    assert content["spent"]["host_bytes"] > 2 * 200e6  # of both processes, each with torch in it
    curve = [c[1]["train/loss"] for k, c in events if k == "metrics"]
    assert curve == pytest.approx([loss for _, loss in alone.logged("train/loss")], abs=2e-4)
    for path in alone.folder.rglob("*.safetensors"):
        ours, theirs = load_file(folder / "two" / path.relative_to(alone.folder)), load_file(path)
        assert ours.keys() == theirs.keys()
        # A step of Adam moves a weight by up to 1e-2, and divides what rounding left of a gradient by itself.
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 5e-4


# Of a pass's last step in two processes: the second has no row of its own, or also the first half a micro-batch.
REMAINDERS = [("sft", 9, 2), ("reward_model", 9, 2), ("prefix", 10, 2), ("bond", 10, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "arm", "dpo", "raft", "rrhf", "qrpo", "q"])
def test_two_processes_have_the_losses_and_the_weights_of_one(study: Any, tmp_path: Path, kind: str) -> None:
    compare(study(kind), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rows", "micro_batch"), REMAINDERS)
def test_so_have_they_where_the_rows_of_a_pass_do_not_divide(
    study: Any, tmp_path: Path, kind: str, rows: int, micro_batch: int
) -> None:
    compare(study(kind, rows=rows), tmp_path, micro_batch=micro_batch)


ALIKE = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


def environment_of(flags: list[str]) -> dict[str, str]:
    """What `accelerate launch` tells its processes about how to split a model."""
    arguments = launch_command_parser().parse_args([*flags, *ALIKE, "script"])
    arguments.deepspeed_fields_from_accelerate_config = ""
    of = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    return {name: value for name, value in of.items() if "FSDP" in name or "DEEPSPEED" in name}


@pytest.fixture(params=["fsdp", "deepspeed"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process holds a part of the model (FSDP) or of what the optimizer keeps (DeepSpeed's ZeRO-2)."""
    if request.param == "deepspeed":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    launcher = distributed._launcher

    def launch(*arguments: Any) -> list[str]:
        for name, value in environment_of(distributed.SHARDED[request.param]).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        return [*launcher(*arguments), str(Path(split_on_processors.__file__))]

    monkeypatch.setattr(distributed, "_launcher", launch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "prefix", "rl"])
def test_so_have_two_that_hold_a_part_each(study: Any, tmp_path: Path, split: None, kind: str) -> None:
    compare(study(kind), tmp_path)


@pytest.mark.slow
def test_so_has_a_scorer_on_a_model_whose_output_head_it_does_not_read(study: Any, tmp_path: Path) -> None:
    model = tiny.language_model(tmp_path / "model", tie_word_embeddings=False)
    compare(study("prefix", f"{FIELDS}, lora: null", model=model), tmp_path)


@pytest.mark.slow
def test_so_have_they_where_a_step_draws_for_a_prompt_in_both(study: Any, tmp_path: Path) -> None:
    compare(study("rl", rows=2), tmp_path)  # four prompts a step


@pytest.mark.slow
def test_what_they_log_is_of_the_rows_of_both_each_counted_once(study: Any, tmp_path: Path) -> None:
    view = study("arm", rows=9)  # of the last row of a pass, the second process has a copy
    alone = stages.build(view, "made", into=tmp_path / "alone", micro_batch=2)
    (outcome, content), events = together(view, tmp_path / "two", micro_batch=2)
    assert outcome == "done", content
    for name in ("train/accuracy", "train/margin"):
        found = [c[1][name] for k, c in events if k == "metrics"]
        assert len(found) == 6
        assert found == pytest.approx([value for _, value in alone.logged(name)], abs=1e-3)


@pytest.mark.slow
def test_a_stage_whose_process_died_starts_over_where_there_are_two_now(study: Any, tmp_path: Path) -> None:
    view = study("sft")
    with dying(tmp_path / "made") as patch:
        patch.setattr(trainers, "CheckpointByClock", lambda every: DiesAfter(2))
        stages.build(view, "made", into=tmp_path / "made", micro_batch=2)
    (tmp_path / "made.scratch").rename(tmp_path / "scratch")
    (outcome, content), events = together(view, tmp_path / "two", micro_batch=2)
    assert outcome == "done", content
    assert ("note", "starting over: the checkpoint is of other `processes`, or of another `sharding`") in events
    assert [c[0] for k, c in events if k == "metrics"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_row_whose_loss_is_no_number_is_named_by_the_process_that_met_it(study: Any, tmp_path: Path) -> None:
    # The model knows no "0": of the ten rows one, which is not among the longest that are tried before the first step.
    spoilt = tiny.spoilt(tmp_path / "model", "0")
    (outcome, (who, text, _)), _ = together(study("dpo", model=spoilt), tmp_path / "two", micro_batch=2)
    assert (outcome, who) == ("failed", "user")
    assert re.fullmatch(
        r"the loss is nan at step \d because of row 1 \('<\|user\|>Number 0\?<\|end\|><\|assistant\|>'\); "
        "mend or remove it",
        text,
    )


OWN = """\
import os, pathlib, signal, time

def score(prompts, responses):
    {act}
    return [0.0 for _ in responses]
"""


@pytest.fixture
def scored_by(tmp_path: Path, study: Any) -> Callable[..., Any]:
    """A stage that asks a reward, `rl` in both its processes, which does as it is told."""

    def made(act: str, kind: str = "rl") -> Any:
        (tmp_path / "own.py").write_text(OWN.format(act=act))
        return study(kind, reward="{kind: python, target: own:score}")

    return made


@pytest.mark.slow
def test_one_process_asks_for_the_scores_of_what_all_train_on(scored_by: Any, tmp_path: Path) -> None:
    view = scored_by(f"pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.asked').touch()", "raft")
    (outcome, content), _ = together(view, tmp_path / "two")
    assert outcome == "done", content
    assert len(list(tmp_path.glob("*.asked"))) == 1


@pytest.mark.slow
def test_a_process_that_the_system_ends_is_told_as_such_and_so_tried_again(scored_by: Any, tmp_path: Path) -> None:
    view = scored_by("os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)")
    (outcome, content), _ = together(view, tmp_path / "two")
    assert (outcome, content[0]) == ("failed", "killed")
    assert isinstance(child._failure(*content), child.Killed)


@pytest.mark.slow
def test_two_processes_that_died_go_on_to_the_very_same_weights(scored_by: Any, tmp_path: Path) -> None:
    asked, died = (f"pathlib.Path({str(tmp_path)!r}, {name!r})" for name in ("asked", "died"))
    act = (
        f"time.sleep(1); len({asked}.read_bytes()) >= 3 and not {died}.exists() and ({died}.touch(), "
        f"os.kill(os.getpid(), signal.SIGKILL)); {asked}.open('a').write('.')"
    )
    (tmp_path / "asked").touch()
    view = scored_by(act)
    (outcome, content), _ = together(view, tmp_path / "two", checkpoint_every="1s")
    assert (outcome, content[0]) == ("failed", "killed")
    shutil.rmtree(tmp_path / "two")
    (outcome, content), events = together(view, tmp_path / "two", checkpoint_every="1s")
    assert outcome == "done", content
    assert [c for k, c in events if k == "note" and str(c).startswith("going on")]
    (tmp_path / "whole").mkdir()
    (outcome, content), _ = together(view, tmp_path / "whole" / "two")
    assert outcome == "done", content
    (ours,), (theirs,) = (list(folder.rglob("*.safetensors")) for folder in (tmp_path / "two", tmp_path / "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_when_the_stage_is_stopped_all_its_processes_end(
    scored_by: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = scored_by(f"pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.pid').touch(); time.sleep(600)")
    artifact = view.artifact("made")
    module, function = stages.BODIES["rl"].split(":")
    out = tmp_path / "out"
    out.mkdir()
    request = child.Request(
        f"{module}:{function}", artifact, out, tmp_path / "scratch", Execution(threads=2), tmp_path / "log", None,
        tuple(sys.path), 2,
    )  # fmt: skip

    def alive() -> list[int]:
        return [int(p.stem) for p in tmp_path.glob("*.pid") if Path("/proc", p.stem).exists()]

    with pytest.raises(child.Interrupted), ThreadPoolExecutor(1) as pool:
        running = pool.submit(child.run_body, request, on_event=lambda event: None)
        wait_until(lambda: len(alive()) == 2, 120)
        monkeypatch.setattr(child, "stopping", stop := threading.Event())
        stop.set()
        running.result()
    wait_until(lambda: not alive(), 20)


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
