"""The service maker: what the command line and systemd ask for, wired together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from echod.clock import use_monotonic_time
from echod.daemon import sdnotify as notify
from echod.daemon.chroot import prepare
from echod.daemon.errors import CannotServe
from echod.daemon.listeners import systemd
from echod.daemon.listeners.accepting import log_not_accepted
from echod.daemon.listeners.description import echo_listener, import_extra, metrics_listener
from echod.daemon.listeners.group import Ports
from echod.daemon.listeners.systemd import METRICS, TLS, PassedListener, PassedSocket, adopt
from echod.daemon.listeners.tcp import Listener, TCPListener
from echod.daemon.logs import ConnectionLog, RateLimitedSummary
from echod.daemon.options import Options
from echod.daemon.service import EchoService
from echod.daemon.signals import Signals
from echod.events import Observer, broadcast
from echod.factory import EchoFactory, descriptors_left
from echod.udp import EchoDatagrams, Rules

log = Logger(namespace="echod")


def makeService(options: Options) -> EchoService:
    """Return the service that ``twistd echod`` runs.

    :raises CannotServe: for what cannot be served, such as an endpoint description that
        Twisted cannot read, or a descriptor that is no socket.
    """
    from twisted.internet import reactor as chosen  # noqa: PLC0415 - twistd chooses it first

    reactor: Any = chosen
    # Before anything takes a timer or the time: twistd's reactors follow the time of day.
    use_monotonic_time(reactor)

    signals = Signals(reactor)
    environ = systemd.pop_environment(os.environ, (*systemd.ENVIRONMENT, *notify.ENVIRONMENT))
    sockets = systemd.passed_sockets(environ, os.getpid())
    if options.log_file is not None:
        signals.reopen_log(options.log_file.reopen)
    connection_log = ConnectionLog(reactor, quiet=options["quiet"], verbose=options["verbose"])
    reactor.addSystemEventTrigger("after", "shutdown", connection_log.flush)
    metrics = metrics_listeners(options, sockets, reactor)
    web = import_extra("web", "metrics", "metrics need") if metrics else None
    factory = EchoFactory(
        clock=reactor,
        max_connections=options["max-connections"],
        max_connections_per_peer=options["max-connections-per-peer"],
        idle_timeout=options["idle-timeout"],
        stall_timeout=options["stall-timeout"],
        handshake_timeout=options["handshake-timeout"],
        verbose=options["verbose"],
    )
    datagrams = EchoDatagrams(
        reactor,
        rules=Rules(options["udp-rate"], options["udp-total-rate"], options["udp-longest"]),
    )
    notifier = notify.notifier(reactor, lambda: len(factory.connections), environ, os.getpid())
    observers: list[Observer] = [connection_log]
    if notifier.address is not None:
        observers.append(notifier)
    listeners = echo_listeners(options, sockets, reactor, datagrams)
    failures = RateLimitedSummary(reactor, log_not_accepted)
    reactor.addSystemEventTrigger("after", "shutdown", failures.flush)
    echo = Ports(factory, listeners, failures)
    secure: list[Any] = [listener for listener in listeners if listener.tls]
    if secure:
        signals.reload_on_hangup(lambda: [listener.reload() for listener in secure])
    others: list[Ports] = []
    if web:
        tally = web.Tally()
        observers.append(tally)
        site = web.MetricsSite(
            reactor=reactor,
            factory=factory,
            datagrams=datagrams,
            tally=tally,
            listening=lambda: echo.addresses,
            listening_on=lambda: [host for ports in others for host in ports.hosts],
        )
        others.append(Ports(site, metrics, failures, "metrics"))
    factory.observer = datagrams.observer = broadcast(*observers)
    service = EchoService(
        reactor=reactor,
        factory=factory,
        echo=echo,
        others=others,
        drain_timeout=options["drain-timeout"],
        notifier=notifier,
        connection_limit=lambda: connection_limit(
            options["max-connections"], reactor, web.MAX_CONNECTIONS if web else 0
        ),
        log_observer=None if options.log_file is None else options.log_file.observer,
    )
    signals.hasten = service.hasten
    prepare(options.parent)
    return service


def connection_limit(asked: int | None, reactor: object, spare: int) -> int:
    """Return how many connections there may be, of the ``asked`` for.

    :param reactor: watches their descriptors.
    :param spare: descriptors that something else needs.
    """
    of_reactor = descriptors_left(reactor)
    left = max(1, of_reactor - spare)
    if asked is None or asked <= left:
        return asked or left
    limit, remedy = "RLIMIT_NOFILE", "raise it (ulimit -n, or LimitNOFILE= of systemd)"
    if of_reactor < descriptors_left():
        limit, remedy = "select(2)", "choose another reactor"
    log.warn(
        "--max-connections {asked}: {limit} leaves room for {left} only; {remedy}",
        asked=asked,
        left=left,
        limit=limit,
        remedy=remedy,
    )
    return left


def echo_listeners(
    options: Options, sockets: Sequence[PassedSocket], reactor: Any, datagrams: EchoDatagrams
) -> list[Listener]:
    """Return where to echo: where the command line says, and on all sockets that were passed.

    Passed sockets that no ``--listen`` names are served without TLS and without a PROXY header.
    One with the name ``tls`` is refused then: to serve it without TLS would be a mistake.

    :raises CannotServe: where one of them cannot be served.
    """
    left = [each for each in sockets if each.name != METRICS]
    listeners = [echo_listener(reactor, datagrams, each, left) for each in options["listen"]]
    for each in left:
        if each.name == TLS:
            raise CannotServe(
                f"{each} is for TLS, and no option says with which certificate: "
                "add --listen ssl:systemd:name=tls:privateKey=FILE:certKey=FILE"
            )
    if not listeners and (options["says-where"] or not left):
        listeners.append(TCPListener(reactor, options["port"], options["interface"]))
    if left:
        listeners.append(PassedListener(reactor, adopt(left, datagrams=True), datagrams))
    return listeners


def metrics_listeners(
    options: Options, sockets: Sequence[PassedSocket], reactor: Any
) -> list[Listener]:
    """Return where the metrics are asked for: nowhere, most often."""
    listeners: list[Listener] = []
    passed = adopt([each for each in sockets if each.name == METRICS])
    if passed:
        listeners.append(PassedListener(reactor, passed))
    if options["metrics"] is not None:
        if options["metrics"].lower().startswith("systemd:"):
            raise CannotServe(
                "--metrics takes no systemd: endpoint, but any socket that is passed with the name "
                "metrics (FileDescriptorName=)"
            )
        option = f"--metrics {options['metrics']!r}"
        listeners.append(metrics_listener(reactor, options["metrics"], option))
    return listeners
