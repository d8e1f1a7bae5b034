# All of AlignFlow's Python for docker-compose.yml: the command, the worker, and Prefect's and MLflow's servers.
FROM python:3.11.14-slim-bookworm

# An argument of the build that pip reads: PyTorch's own index has a build without GPU libraries, which are gigabytes.
ARG PIP_EXTRA_INDEX_URL
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true HF_HUB_DISABLE_TELEMETRY=1

# New volumes take their owner from what is at their place in the image.
RUN useradd --uid 1000 --create-home alignflow \
 && install --directory --owner=alignflow --group=alignflow /srv/mlflow /srv/alignflow/home /srv/alignflow/hub \
    /tmp/alignflow-gpus

WORKDIR /opt/alignflow
# What it stands on comes first, and is built again only when these two files change.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib, pathlib; p = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
print(*p['dependencies'], *p['optional-dependencies']['team'], sep='\n')" > requirements.txt \
 && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY flows flows
COPY tasks tasks
COPY specs specs
COPY registry registry
RUN pip install --no-cache-dir --no-deps .

# Git's history stays outside: which code this is, for the records of what it runs. Last, for it changes with every build.
ARG ALIGNFLOW_COMMIT
ENV ALIGNFLOW_COMMIT=${ALIGNFLOW_COMMIT}

USER 1000:1000
WORKDIR /srv/alignflow
CMD ["alignflow", "--help"]
