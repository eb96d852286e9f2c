"""The daemon as a process: start it, read its log, connect to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests import TIMEOUT

TWISTD = Path(sys.executable).with_name("twistd")


class Daemon:
    """A real ``twistd -n echod``, or another ``command``, in an empty directory.

    As a context manager, it listens inside the block and is killed at its end.
    """

    def __init__(self, *options: str, **popen: Any) -> None:
        self.directory = tempfile.TemporaryDirectory()
        twistd = [str(TWISTD), *popen.pop("twistd", ("-n", "echod"))]
        self.process = subprocess.Popen(
            [*popen.pop("prefix", ()), *popen.pop("command", twistd), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory.name,
            text=True,
            **popen,
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line.rstrip())
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def __enter__(self) -> Daemon:
        try:
            self.wait_for("listening on")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, and remove its directory."""
        self.process.kill()
        self.wait()
        self.directory.cleanup()

    def wait(self) -> int:
        """Wait until it exits, and return its exit status."""
        status = self.process.wait(TIMEOUT)
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def wait_for(self, text: str, count: int = 1) -> list[str]:
        """Wait until ``count`` lines of the log contain ``text``, and return them."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line]

        with self._more:
            self._more.wait_for(lambda: len(found()) >= count or self._ended, TIMEOUT)
        assert len(found()) >= count, (text, self.lines)
        return found()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def port(self) -> int:
        return int(self.wait_for("listening on tcp")[0].rpartition(":")[2])

    @property
    def tls_port(self) -> int:
        return int(self.wait_for("listening on tls")[0].rpartition(":")[2])

    def connect(self, host: str = "127.0.0.1", **options: Any) -> socket.socket:
        return socket.create_connection((host, self.port), TIMEOUT, **options)

    def terminate(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def rss(self) -> int:
        """Return the resident memory, in bytes (proc(5))."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")
        )

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))
