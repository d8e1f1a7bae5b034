"""The language: one YAML file is one alignment study.

Small frozen Pydantic models (one file a family), strict YAML with positions, and the pure planner.
Nothing here imports torch, Prefect or MLflow, and nothing reads a file other than the study and
what it extends.
"""
