"""All documents: they render, their examples run, and they name every part of the API."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args

import pytest
from docutils import nodes
from docutils.core import publish_doctree, publish_string
from twisted.logger import LogLevel, globalLogPublisher
from twisted.protocols.policies import WrappingFactory

from echod.client.protocol import EchoClient, EchoIncomplete, EchoMismatch
from echod.events import Closed, Dropped, Ending, Event, Opened, Reason
from echod.factory import EchoFactory
from echod.protocol import Echo
from echod.testing import MemoryNetwork, Peer
from echod.timeouts import FIRST_BYTE
from tests import ROOT, TIMEOUT
from tests.authority import Authority
from tests.recorder import Recorder
from tests.streams.server import Peers

DOCUMENTS = [
    *sorted((ROOT / "docs").glob("*.rst")),
    *(
        ROOT / name
        for name in ("README.rst", "CHANGELOG.rst", "CONTRIBUTING.rst")
        if (ROOT / name).exists()
    ),
]

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)

SETTINGS = {
    "report_level": 2,  # a warning
    "halt_level": 2,
    "syntax_highlight": "none",  # Pygments may be missing
    "file_insertion_enabled": False,
    "raw_enabled": False,
}


def tree(path: Path) -> nodes.document:
    return publish_doctree(path.read_text(), str(path), settings_overrides=SETTINGS)


def section(document: nodes.Element, title: str) -> nodes.section:
    [found] = [part for part in document.findall(nodes.section) if part[0].astext() == title]
    return found


def blocks(document: nodes.document, language: str | None) -> list[str]:
    """Return the text of each literal block in ``language``, or, if None, without a language."""
    return [
        block.astext()
        for block in document.findall(nodes.literal_block)
        if (language in block["classes"] if language else not block["classes"])
    ]


def literals(part: nodes.Element) -> set[str]:
    """Return each text in double backquotes."""
    return {literal.astext() for literal in part.findall(nodes.literal)}


def defined(part: nodes.Element) -> dict[str, str]:
    """Return each term of the definition lists, and its definition."""
    return {
        item[0].astext(): " ".join(item[-1].astext().split())
        for item in part.findall(nodes.definition_list_item)
    }


def public(cls: type) -> set[str]:
    """Return the names of the methods in snake_case, which users call."""
    return {
        name
        for name, value in vars(cls).items()
        if inspect.isfunction(value) and re.fullmatch("[a-z][a-z_]*", name)
    }


def signature(function: Any) -> str:
    """Return a signature as in the documents: names and defaults, without types."""
    parameters = inspect.signature(function).parameters.values()
    untyped = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    shown = ", ".join(str(parameter) for parameter in untyped if parameter.name != "self")
    return f"{function.__name__}({shown})".replace("'", '"')


EMBEDDING = tree(ROOT / "docs" / "embedding.rst")
TESTING = tree(ROOT / "docs" / "testing.rst")


@each_document
def test_renders(path: Path) -> None:
    """A document renders with docutils alone, without a warning."""
    publish_string(path.read_text(), str(path), writer="html5", settings_overrides=SETTINGS)


@each_document
def test_names_files_that_exist(path: Path) -> None:
    """A file of the repository that a document names or links to exists."""
    document = tree(path)
    linked = [node["refuri"] for node in document.findall(nodes.reference) if "refuri" in node]
    named = [
        name
        for name in literals(document)
        if re.fullmatch(r"(docs|tests|echod|benchmarks|systemd)/[\w./]+", name)
    ]
    for name in [uri for uri in linked if ":" not in uri]:
        assert (path.parent / name).exists(), name
    for name in named:
        assert (ROOT / name).exists(), name


TLS_APPLICATION = """
import ssl
import socket
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react
from twisted.internet.threads import deferToThread
from echod import EchoFactory


def client(port):
    context = ssl.create_default_context(cafile="authority.pem")
    sock = socket.create_connection(("127.0.0.1", port))
    with context.wrap_socket(sock, server_hostname="localhost") as over:
        over.sendall(b"hello")
        print(over.recv(5))


async def main(reactor):
    factory = EchoFactory()
{part}
    await deferToThread(client, port.getHost().port)
    await factory.drain(1)


react(main)
"""


def run_application(application: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", application],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_embedding_example(tmp_path: Path) -> None:
    """The application runs, prints the text of the document, and writes no file."""
    [application, *_] = blocks(EMBEDDING, "python")
    [printed] = blocks(EMBEDDING, "text")
    ended = run_application(application, tmp_path)
    assert (ended.stdout, ended.stderr, ended.returncode) == (printed + "\n", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_clock_example(tmp_path: Path) -> None:
    """The lines of the document make the reactor monotonic."""
    [_, lines, _] = blocks(EMBEDDING, "python")
    asked = "from echod.clock import clock_of\nprint(clock_of(reactor) is reactor)\n"
    ended = run_application(f"{lines}\n{asked}", tmp_path)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("True\n", "", 0)


def test_tls_example(tmp_path: Path) -> None:
    """The part that adds TLS serves TLS with the files that it names."""
    key, certificate = Authority(tmp_path).issue("server")
    Path(key).rename(tmp_path / "key.pem")
    Path(certificate).rename(tmp_path / "certificate.pem")
    [*_, part] = blocks(EMBEDDING, "python")
    application = TLS_APPLICATION.format(part=textwrap.indent(part, "    "))
    ended = run_application(application, tmp_path)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("b'hello'\n", "", 0)


def trial(directory: Path, example: str) -> str:
    """Return the output of trial for ``example``."""
    (directory / "test_example.py").write_text(example)
    ended = subprocess.run(
        [sys.executable, "-m", "twisted.trial", "test_example"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return ended.stdout


def test_testing_example(tmp_path: Path) -> None:
    """Each test of the example runs and passes."""
    [example] = blocks(TESTING, "python")
    count = example.count("def test_")
    assert count == 3
    assert f"PASSED (successes={count})" in trial(tmp_path, example)


@pytest.mark.parametrize(
    ("without", "failing"),
    [("@implementer", "test_half_close"), ("transport.registerProducer", "test_back_pressure")],
)
def test_testing_example_fails(tmp_path: Path, without: str, failing: str) -> None:
    """Without a line that the document requires, exactly the matching test fails."""
    [example] = blocks(TESTING, "python")
    lines = [line for line in example.splitlines() if without not in line]
    assert len(lines) == len(example.splitlines()) - 1
    output = trial(tmp_path, "\n".join(lines))
    assert re.findall(r"(\w+) \.\.\. +\[FAIL\]", output) == [failing], output


def test_factory_parameters() -> None:
    """The document defines each parameter of the factory, with its default."""
    definitions = defined(section(EMBEDDING, "Parameters of the factory"))
    parameters = inspect.signature(EchoFactory).parameters
    assert list(definitions) == list(parameters)
    for name, definition in definitions.items():
        default = parameters[name].default
        shown = f"Default: {default:g}" if isinstance(default, float) else "Default:"
        assert shown in definition


def test_events() -> None:
    """The document defines each event with its fields, each ending, and each reason."""
    part = section(EMBEDDING, "The events")
    events = {
        f"{event.__name__}({', '.join(field.name for field in dataclasses.fields(event))})"
        for event in get_args(Event)
        if event is not Dropped
    }
    assert set(defined(part)) == events
    [body] = part.findall(nodes.tbody)
    rows = [[cell.astext() for cell in row] for row in body.findall(nodes.row)]
    assert sorted(row[0] for row in rows) == sorted(ending.value for ending in Ending)
    assert literals(part) >= {reason.value for reason in Reason}


def test_client() -> None:
    """The document names each public method of the client, and each of its errors."""
    part = section(EMBEDDING, "The client")
    assert literals(part) >= {signature(EchoClient.echo), signature(EchoClient.close)}
    assert literals(part) >= {error.__name__ for error in (EchoMismatch, EchoIncomplete)}
    assert public(EchoClient) == {"echo", "close"}


def test_testing_parts() -> None:
    """The document names each public method of the network and of the peer with its signature."""
    named = literals(section(TESTING, "The parts"))
    for_transports = {"connect", "listen", "stop"}
    for name in public(MemoryNetwork) - for_transports:
        assert signature(getattr(MemoryNetwork, name)) in named
    for name in public(Peer):
        assert signature(getattr(Peer, name)) in named


class Scene:
    """An EchoFactory on the in-memory network, and one peer."""

    def __init__(self, wrap: Any = lambda factory: factory) -> None:
        self.network = MemoryNetwork()
        self.events = Recorder()
        self.factory = EchoFactory(observer=self.events)
        self.network.server_endpoint().listen(wrap(self.factory))
        peers = Peers()
        self.network.client_endpoint().connect(peers)
        [self.peer] = peers.peers

    @property
    def echo(self) -> Echo:
        [echo] = self.factory.connections
        return echo


def test_lose_connection_with_little_buffered() -> None:
    """loseConnection() with 64 KiB or less buffered: the bytes, then FIN; ending: finished."""
    scene = Scene()
    scene.peer.stall()
    scene.peer.send(bytes(128 * 1024))
    scene.network.settle()
    scene.echo.transport.loseConnection()
    scene.peer.resume()
    scene.network.settle()
    assert (len(scene.peer.received), scene.peer.ended) == (128 * 1024, "FIN")
    assert scene.events.endings == [Ending.FINISHED]


def test_lose_connection_with_bytes_unread() -> None:
    """loseConnection() with unread input: the peer sees RST."""
    scene = Scene()
    scene.peer.transport.getHandle().send(b"hello")
    scene.echo.transport.loseConnection()
    scene.network.settle()
    assert (scene.peer.received, scene.peer.ended) == (b"", "RST")


def test_lose_connection_with_much_buffered() -> None:
    """loseConnection() with more buffered than Twisted's limit: the bytes, then FIN."""
    scene = Scene()
    scene.peer.stall()
    scene.peer.send(bytes(150_000))
    scene.network.settle()
    scene.echo.transport.loseConnection()
    scene.peer.resume()
    scene.network.settle()
    assert (len(scene.peer.received), scene.peer.ended) == (150_000, "FIN")
    assert scene.events.endings == [Ending.FINISHED]


@pytest.mark.parametrize(("act", "ending"), [("abort", Ending.ABORTED), ("drain", Ending.DRAINED)])
@pytest.mark.parametrize("acts_at", [Opened, Closed])
@pytest.mark.parametrize("idle_timeout", [None, 1])
def test_observer_acts(act: str, ending: Ending, acts_at: type, idle_timeout: float | None) -> None:
    """An observer may abort, even twice, and drain, at any event; no timer is left."""

    def observe(event: Any) -> None:
        events(event)
        if isinstance(event, acts_at) and act == "drain":
            factory.drain(10)
        elif isinstance(event, acts_at):
            for echo in (*factory.connections, *factory.connections):
                echo.abort()

    network, events = MemoryNetwork(), Recorder()
    factory = EchoFactory(observer=observe, idle_timeout=idle_timeout)
    network.server_endpoint().listen(factory)
    peers = Peers()
    network.client_endpoint().connect(peers)
    if acts_at is Closed:
        network.client_endpoint().connect(peers)
        peers.peers[0].finish()
    network.advance(FIRST_BYTE + 0.5)
    assert events.endings[-1] is ending
    assert factory.connections == set()
    assert network.getDelayedCalls() == []


def test_observer_raises() -> None:
    """An exception in the observer is logged as critical, and no peer loses a byte."""

    def observe(event: Any) -> None:
        raise RuntimeError(event)

    network, logged = MemoryNetwork(), []
    network.server_endpoint().listen(EchoFactory(observer=observe))
    peers = Peers()
    globalLogPublisher.addObserver(logged.append)
    try:
        network.client_endpoint().connect(peers)
        [peer] = peers.peers
        peer.send(b"hello")
        peer.finish()
        network.settle()
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert (peer.received, peer.ended) == (b"hello", "FIN")
    assert [(entry["log_namespace"], entry["log_level"]) for entry in logged] == [
        ("echod", LogLevel.critical)
    ] * 2


def test_wrapping_factory() -> None:
    """A wrapping factory hides the half-close: the reply ends with RST, and the ending is lost."""
    scene = Scene(WrappingFactory)
    scene.peer.stall()
    scene.peer.send(bytes(100_000))
    scene.peer.finish()
    scene.network.settle()
    scene.peer.resume()
    scene.network.settle()
    assert scene.peer.ended == "RST"
    assert len(scene.peer.received) < 100_000
    [closed] = scene.events.closed
    assert (closed.ending, closed.bytes) == (Ending.LOST, 100_000)
    assert 0 < closed.unsent < 100_000
