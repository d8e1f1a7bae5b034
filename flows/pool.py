"""The Prefect work pool that deployed studies wait in, and the limit of a host's GPUs.

How many of them run at once is each worker's own affair: one without GPUs, for two on the same cores ruin each other;
with GPUs as many as there are, whose stages then queue for the cards.
"""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from tasks import gpus

NAME = "alignflow"


def make(client: SyncPrefectClient) -> None:
    """Makes the pool where there is none."""
    try:
        client.read_work_pool(NAME)
    except ObjectNotFound:
        from prefect.workers.process import ProcessWorker  # a second of imports, which a run does without

        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=NAME, type="process", base_job_template=template)
        try:
            client.create_work_pool(pool)
        except ObjectAlreadyExists:  # another process made it meanwhile
            return


def is_served(client: SyncPrefectClient) -> bool:
    """Whether a worker has asked the pool for work lately."""
    return any(worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(NAME))


def limit_gpus(client: SyncPrefectClient) -> None:
    """Makes the concurrency limit of this host's GPUs, or sets it to how many there are now."""
    name, slots = gpus.limit_name(), gpus.count()
    try:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))
    except ObjectAlreadyExists:
        if client.read_global_concurrency_limit_by_name(name).limit != slots:
            client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=slots))
