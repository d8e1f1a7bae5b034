"""What is looked at before the first stage of a run, all of it: the study's leaves, GPUs, MLflow, judges."""

from __future__ import annotations

from registry import judges
from specs.problems import UnfitError
from tasks import gpus
from tasks.places import mlflow_problem, tracking_place
from tasks.view import View


def require(view: View) -> None:
    """Raises `UnfitError` where the machine or a server cannot run the study. What is wrong with the study itself,
    `View.problems` says."""
    gpus.require(view.study.execution)
    uri, _ = tracking_place(view.study, view.home)
    if problem := mlflow_problem(uri):
        raise UnfitError(problem)
    for name in view.judges(view.to_build()):
        judges.try_out(name, view.study.judges[name])
