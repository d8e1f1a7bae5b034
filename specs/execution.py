"""How and where a study runs. None of it bears identity: no fingerprint ever sees these models."""

from collections import defaultdict
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from specs.base import Count, Duration, EnvironmentText, Flag, MayNameEnvironment, Spec, WholeNumber, expand_environment
from specs.problems import without_password


class Execution(Spec):
    """Resources, patience and batch sizes."""

    gpus: WholeNumber = 0
    """GPUs a stage takes. Each stage waits for that many slots of the concurrency limit `gpu-<host>`."""
    threads: Count | None = None
    """Processor threads of a stage; if absent, as many as OMP_NUM_THREADS says, else all cores."""
    processes: Count | None = None
    """Processes that train a stage together, each on its share of every batch; if absent, one for each of the `gpus`."""
    sharding: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """How several GPUs hold the model: each whole (DDP), or a part each (FSDP; DeepSpeed's ZeRO-2, which is installed apart)."""
    rows: Count = 64
    """The most sequences that the sampler and the scorers keep in one batch; of long texts reward models on a processor read fewer
    at a time. It changes speed and memory, not who gets which draw."""
    micro_batch: Count = 4
    """Rows in one training forward pass; gradients accumulate up to the stage's `batch_size`. A row of `sft`, `raft` and `rl`
    is one sequence, of `reward_model` and `dpo` two, and of the other stages a prompt with all its answers."""
    gradient_checkpointing: Flag | None = None
    """Whether training keeps fewer activations and computes them again (less memory, a third more time); if absent, on GPUs."""
    checkpoint_every: Duration = "10m"
    """How often a training stage saves what it needs to go on from there after its process has died."""
    retries: WholeNumber = 2
    """How often a stage is tried again after a passing fault (lost connection, worker killed by the system)."""
    timeout: Duration | None = None
    """The most time one stage may take; then its processes are killed."""

    @model_validator(mode="after")
    def _has_a_process_for_each_gpu(self) -> Self:
        if self.gpus and self.processes not in (None, self.gpus):
            raise ValueError(
                f"`processes: {self.processes}` do not fit `gpus: {self.gpus}`: each GPU has a process of its own; leave "
                "`processes` out"
            )
        return self

    @property
    def training_processes(self) -> int:
        """How many processes train a stage together."""
        return self.processes or max(1, self.gpus)

    def micro(self, batch: int) -> int:
        """Rows of a batch that are in one forward pass: the largest divisor of the batch that is at most `micro_batch`."""
        return max(d for d in range(1, min(batch, self.micro_batch) + 1) if batch % d == 0)


class Tracking(Spec):
    """Where MLflow keeps the runs."""

    experiment: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """The MLflow experiment; the study's name if absent."""
    uri: Annotated[EnvironmentText | None, MayNameEnvironment()] = None  # what marks a member of a union is not found
    """The tracking server or database. If absent: `MLFLOW_TRACKING_URI`, else SQLite in the home folder."""

    @field_validator("uri")
    @classmethod
    def _holds_no_password(cls, uri: str | None) -> str | None:
        written = expand_environment(uri or "", defaultdict(str))
        if without_password(written) != written:
            raise ValueError("a password in a study file would be shown by every server; write `${env:NAME}` for it")
        return uri
