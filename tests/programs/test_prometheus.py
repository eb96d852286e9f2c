"""Prometheus and Chromium read the HTTP pages of a daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests import TIMEOUT
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

MILLION = 1_000_000


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"{program} is not installed: it is in Debian's package {package}",
    )


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon that has echoed 1,000,000 bytes on ten connections."""
    with Daemon("--port", "0", "--metrics", "tcp:0:interface=127.0.0.1") as daemon:
        returned = 0
        for _ in range(10):
            with daemon.connect() as client:
                client.sendall(b"x" * (MILLION // 10))
                client.shutdown(socket.SHUT_WR)
                returned += len(receive_all(client))
        assert returned == MILLION
        daemon.wait_for("finished", 10)
        yield daemon


def address(daemon: Daemon) -> str:
    return "127.0.0.1:" + daemon.wait_for("metrics on tcp")[0].rpartition(":")[2]


def fetch(url: str) -> bytes:
    with urlopen(url, timeout=TIMEOUT) as reply:
        body: bytes = reply.read()
    return body


@needs("promtool", "prometheus")
def test_promtool(daemon: Daemon) -> None:
    """Promtool has no remarks on names, types and help texts."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=fetch(f"http://{address(daemon)}/metrics"),
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


class Prometheus:
    """A Prometheus in ``directory`` that scrapes ``target`` alone."""

    def __init__(self, directory: Path, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = directory / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: echod, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        self._output = (directory / "output").open("w+b")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={self.address}",
            ],
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(TIMEOUT)
        self._output.close()

    def query(self, expression: str) -> dict[str, float]:
        """Return the current values of ``expression``, by their label ``ending``."""
        url = f"http://{self.address}/api/v1/query?" + urlencode({"query": expression})
        answer = json.loads(fetch(url))
        assert answer["status"] == "success"
        return {
            each["metric"].get("ending", ""): float(each["value"][1])
            for each in answer["data"]["result"]
        }

    def wait_until(self, expression: str, happened: Callable[[dict[str, float]], bool]) -> None:
        """Poll ``expression`` until ``happened`` accepts its values, within a bounded time."""
        end = time.monotonic() + 3 * TIMEOUT  # Prometheus takes seconds to start
        while time.monotonic() < end:
            try:
                if happened(self.query(expression)):
                    return
            except OSError:  # it does not listen yet, or is not ready (503)
                assert self._process.poll() is None, self.output()
            time.sleep(0.05)
        raise AssertionError(f"{expression} is {self.query(expression)}: {self.output()}")

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode()


@needs("prometheus", "prometheus")
def test_prometheus(daemon: Daemon, tmp_path: Path) -> None:
    """After a clean run, Prometheus has the numbers that the clients have counted."""
    with Prometheus(tmp_path, address(daemon)) as prometheus:
        prometheus.wait_until("up", lambda found: found == {"": 1})
        for expression, value in (
            ("echod_received_bytes_total", {"": MILLION}),
            ("echod_sent_bytes_total", {"": MILLION}),
            ("echod_connections_accepted_total", {"": 10}),
            ("echod_connections_closed_total > 0", {"finished": 10}),
            ("echod_connection_duration_seconds_count", {"": 10}),
            ("echod_connections_open", {"": 0}),
        ):
            assert prometheus.query(expression) == value, expression
        # Open connections are included.
        with daemon.connect() as client:
            client.sendall(b"x" * 1000)
            prometheus.wait_until(
                "echod_sent_bytes_total", lambda found: found[""] == MILLION + 1000
            )
            assert prometheus.query("echod_connections_open") == {"": 1}
        # That client has not read its reply, and is lost. Health checks are unused, whether they
        # end with FIN or with RST.
        for linger in (b"\0" * 8, b"\1" + b"\0" * 7):
            with daemon.connect() as check:
                check.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        closed = "echod_connections_closed_total"
        prometheus.wait_until(
            f'{closed}{{ending=~"unused|lost"}}', lambda found: found == {"unused": 2, "lost": 1}
        )
    # A scrape is not logged.
    for line in daemon.lines:
        assert "echod#" not in line or re.search("listening on|metrics on|closed", line)


def browse(url: str, directory: Path, *options: str) -> bytes:
    browser = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={directory / 'profile'}",
            *options,
            url,
        ],
        capture_output=True,
        timeout=3 * TIMEOUT,
        check=False,
        env={**os.environ, "HOME": str(directory)},
    )
    assert browser.returncode == 0, browser.stderr.decode()
    return browser.stdout


@needs("chromium", "chromium")
def test_browser(daemon: Daemon, tmp_path: Path) -> None:
    """A browser gets HTML, and shows each fact in a table row."""
    dom = browse(f"http://{address(daemon)}/", tmp_path, "--dump-dom").decode()
    rows = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', dom))
    assert rows["state"] == "serving"
    assert rows["accepted"] == rows["finished"] == "10"
    assert rows["bytes received"] == rows["bytes sent"] == "1,000,000 (1.0 MB)"
    assert rows["stalled"] == rows["lost"] == rows["max-connections"] == "0"


@needs("chromium", "chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_picture(daemon: Daemon, tmp_path: Path, width: int) -> None:
    """A browser renders the page, in the width of a desktop and of a phone."""
    picture = tmp_path / "page.png"
    browse(
        f"http://{address(daemon)}/",
        tmp_path,
        f"--screenshot={picture}",
        f"--window-size={width},1000",
    )
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(picture.read_bytes()[16:20], "big") == width
