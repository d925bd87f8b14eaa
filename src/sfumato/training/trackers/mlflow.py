"""MLflow: a run on the server of `MLFLOW_TRACKING_URI`."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sfumato.base.errors import ConfigError
from sfumato.training.trackers.protocol import End, Point, Sent, TrackedRun, without_secrets

ADDRESS = "MLFLOW_TRACKING_URI"
KEY = "sfumato.run"
"""Tag by which a run is found again, whatever was killed between its making and its first point."""
SENT = "sfumato.sent"
"""Tag that goes with every batch of points: what the server has, by its own account."""
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
"""A server that does not answer is asked again by us, later."""
MOST_PARAMETERS = 100
LONGEST_PARAMETER = 6000
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow:
    """Points keep their time when they are sent again: to the server they are then the same."""

    _client: Any
    _run_id: str

    def open(self, run: TrackedRun, sent: Sent) -> Sent:
        for name, value in QUICK.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        from mlflow.tracking import MlflowClient  # pyright: ignore

        self._client = MlflowClient(os.environ[ADDRESS])
        found = self._found(run)
        self._run_id = found.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        self._parameters(run, found.data.params)
        known = found.data.tags.get(SENT)
        if known is None:
            return Sent()
        return replace(sent, records=json.loads(known))

    def _found(self, run: TrackedRun) -> Any:
        """The run with our key, which is made where there is none."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sfumato")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`{KEY}` = '{run.key}'", max_results=1)
        if found:
            return found[0]
        return self._client.create_run(number, run_name=run.name, tags={KEY: run.key})

    def _parameters(self, run: TrackedRun, known: dict[str, str]) -> None:
        """Those that the server does not have; it lets none be changed."""
        from mlflow.entities import Param  # pyright: ignore

        new = [
            Param(name, str(value)[:LONGEST_PARAMETER])
            for name, value in run.parameters.items()
            if name not in known
        ]
        for start in range(0, len(new), MOST_PARAMETERS):
            self._client.log_batch(self._run_id, params=new[start : start + MOST_PARAMETERS])

    def metrics(self, points: Sequence[Point], sent: Sent) -> None:
        from mlflow.entities import Metric, RunTag  # pyright: ignore

        values = [
            Metric(name, value, round(1000 * point.time), point.images_seen)
            for point in points
            for name, value in point.values.items()
        ]
        tag = RunTag(SENT, json.dumps(sent.records))
        self._client.log_batch(self._run_id, metrics=values, tags=[tag])

    def picture(self, images_seen: int, file: Path, sent: Sent) -> None:
        self._client.log_artifact(self._run_id, str(file), "samples")

    def artifact(self, name: str, file: Path) -> None:
        folder = name.rpartition("/")[0]
        self._client.log_artifact(self._run_id, str(file), folder or None)

    def close(self, end: End) -> None:
        self._client.set_terminated(self._run_id, STATUS[end])


TRACKER = MLflow


def address() -> str:
    """The address of the server; `ConfigError` for none, and for what cannot be one."""
    given = os.environ.get(ADDRESS, "")
    hint = f"Start a server with `mlflow server`, and export {ADDRESS}=http://127.0.0.1:5000."
    if not given:
        raise ConfigError(f"The tracker 'mlflow' has no address: {ADDRESS} is not set.", hint=hint)
    parts = urlsplit(given)
    if not parts.scheme or (parts.scheme in ("http", "https") and not parts.hostname):
        raise ConfigError(
            f"{ADDRESS} is not the address of a server: '{without_secrets(given)}'.", hint=hint
        )
    return given
