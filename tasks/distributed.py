"""A training body in several processes: data-parallel over GPUs by `accelerate launch`, or over processor cores.

Every process runs the same body. The first one's reports and files count; the others write where nothing is looked for.
Whoever fails says so, and all end.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from registry.machine import threads
from tasks.job import Event, Job, Log

SHARDED = {
    "ddp": ["--multi_gpu"],
    "fsdp": ["--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
             "--fsdp_state_dict_type=FULL_STATE_DICT", "--fsdp_cpu_ram_efficient_loading=false"],
    "deepspeed": ["--use_deepspeed", "--zero_stage=2"],
}  # fmt: skip


ENDS = ("done", "failed", "joined")
"""The last words of a process: the first one's, one's that failed, and those of the others."""
GONE: Event = ("gone", None)
"""What stands for the last word of a process that said none."""


def launch(body: str, job: Job, processes: int, send: Any) -> Event:
    """Runs `body` (`module:function`) in so many processes; passes their reports to `send`, and returns the last one, done
    or failed."""
    with tempfile.TemporaryDirectory(prefix="alignflow-") as folder:
        address = str(Path(folder) / "reports")
        task = Path(folder) / "task"
        task.write_bytes(pickle.dumps((body, job.artifact, job.out, job.scratch, job.execution, address)))
        with Listener(address, "AF_UNIX") as listener:
            outcome: list[Event] = []
            relays: list[threading.Thread] = []
            ears = threading.Thread(target=_listen, args=(listener, processes, send, outcome, relays), daemon=True)
            ears.start()
            code = subprocess.run(
                [*_launcher(job.execution, processes), "-m", "tasks.distributed", str(task)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": _threads(job, processes)},
                check=False,
            ).returncode
            ears.join(1)  # it waits for ever for a process that never spoke
            # What has been said may still be on its way, and the launcher may have left processes behind.
            for relay in relays:
                relay.join(60)
    # One process fails for a reason, the others because it is gone.
    if outcome and outcome[0] == GONE:
        return "failed", ("killed", "the system ended one of its processes; was memory short?", "")
    failures = sorted((event for event in outcome if event[0] == "failed"), key=lambda event: event[1][0] == "defect")
    done = [event for event in outcome if event[0] == "done"]
    if failures or not done:
        return (failures or [("failed", ("defect", f"the processes ended with status {code} and no result", ""))])[0]
    others = [content for kind, content in outcome if kind == "joined"]
    return "done", {**done[0][1], "spent": _together([done[0][1]["spent"], *others])}


def _together(spent: list[dict[str, float]]) -> dict[str, float]:
    """What processes had in use: on the host as if they shared nothing, and on the fullest of the devices."""
    return {
        "host_bytes": sum(one["host_bytes"] for one in spent),
        "device_bytes": max(one["device_bytes"] for one in spent),
        "processor_seconds": sum(one["processor_seconds"] for one in spent),
    }


def _threads(job: Job, processes: int) -> str:
    return str(max(1, threads(job.execution.threads) // processes))


def _launcher(execution: Any, processes: int) -> list[str]:
    """The command before the module's name. `accelerate launch` knows no processes on a processor but those of MPI, so
    there it is what it calls itself."""
    if not execution.gpus:
        local = ["--standalone", "--nnodes=1", f"--nproc_per_node={processes}"]
        return [sys.executable, "-m", "torch.distributed.run", *local]
    options = [f"--num_processes={processes}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    port = ["--main_process_port=0"]
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launch, *options, *port, *SHARDED[execution.sharding]]


def _listen(
    listener: Listener, processes: int, send: Any, outcome: list[Event], relays: list[threading.Thread]
) -> None:
    for _ in range(processes):
        connection = listener.accept()
        relays.append(threading.Thread(target=_relay, args=(connection, send, outcome), daemon=True))
        relays[-1].start()


def _relay(connection: Any, send: Any, outcome: list[Event]) -> None:
    """Passes on what a process says until it is gone; how it ended, or that it went without a word, is an outcome."""
    ended = False
    while True:
        try:
            event = connection.recv()
        except (EOFError, OSError):
            if not ended:
                outcome.append(GONE)
            return
        ended = ended or event[0] in ENDS
        if event[0] in ENDS:
            outcome.append(event)
        else:
            send(event)


def _end_with(connection: Any) -> None:
    """Ends this process when whoever started it is gone: torch's launcher gives each a session of its own, so that what
    kills the launcher does not kill them."""
    connection.poll(None)  # nothing is ever sent this way
    os._exit(1)


@contextmanager
def main_first() -> Iterator[bool]:
    """The first process goes through the block before the others do; whether this is it. Alone, it always is."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    # Sampling may take long. On a processor accelerate sees one process alone unless it is told.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))
    with state.main_process_first():
        yield bool(state.is_main_process)


def _main(task: str) -> int:
    """One process of several."""
    from tasks.child import outcome_of

    body, artifact, out, scratch, execution, address = pickle.loads(Path(task).read_bytes())
    rank = int(os.environ["RANK"])
    if execution.gpus:
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # else all load their models onto the first
    with Client(address, "AF_UNIX") as connection:
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        lock = threading.Lock()

        def send(event: Event) -> None:
            if rank == 0 or event[0] in ENDS:
                with lock:
                    connection.send(event)

        if rank:
            out = Path(task).with_name(f"process-{rank}")
            out.mkdir()
        event = outcome_of(body, Job(artifact, out, scratch, execution, Log(send)))
        send(event if rank == 0 or event[0] == "failed" else ("joined", event[1]["spent"]))
        return 0 if event[0] == "done" else 1


if __name__ == "__main__":
    status = _main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # the others of a process that failed wait for it for ever
