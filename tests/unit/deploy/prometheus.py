"""A real Prometheus for tests: scrapes what the services expose, from one small server, and answers queries."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.conftest import free_port
from tests.unit.deploy.small_http import answering

START_SECONDS = 30.0
NUM_SCRAPES = 3  # a rate needs two


def program(name: str) -> str:
    """prometheus or promtool. A developer without them is told what was skipped; CI is not let off."""
    found = shutil.which(name)
    if found is None and not os.environ.get("CI_RUN"):
        pytest.skip(f"no {name} here: apt-get install prometheus")
    assert found, f"no {name}: .ci/run installs it"
    return found


class Prometheus:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of the answer. A query that Prometheus refuses fails the test with its own words."""
        try:
            with urlopen(f"{self._url}?{urlencode({'query': expression})}", timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                return found
        except HTTPError as error:
            if error.code == 503:  # it is not up yet
                raise
            raise AssertionError(f"{expression}: {json.load(error)['error']}") from None


@contextlib.contextmanager
def running_prometheus(texts: dict[str, bytes], folder: Path) -> Iterator[Prometheus]:
    """It has scraped each job of `texts` several times."""
    binary = program("prometheus")
    with answering(lambda path, *_: ("text/plain; version=0.0.4", texts[path.strip("/")])) as target:
        jobs = [
            {"job_name": job, "metrics_path": f"/{job}", "static_configs": [{"targets": [target]}]} for job in texts
        ]
        config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "prometheus.log").open("w") as log:
            process = subprocess.Popen(
                [binary, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
            )
        try:
            server = Prometheus(port)
            _wait(server, process, len(texts), folder / "prometheus.log")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _wait(server: Prometheus, process: subprocess.Popen[bytes], num_jobs: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError):
            found = server.query(f"sum_over_time(up[1m]) >= {NUM_SCRAPES}")
            if len(found) == num_jobs:
                return
        time.sleep(0.1)
