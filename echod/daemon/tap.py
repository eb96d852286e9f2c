"""The service maker of ``twistd echod``: turn options and environment into a service."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from twisted.logger import Logger

from echod.clock import use_monotonic_time
from echod.daemon import sdnotify
from echod.daemon.chroot import prepare
from echod.daemon.errors import CannotServe, WrongOption
from echod.daemon.faultlog import FaultLog
from echod.daemon.listeners import systemd
from echod.daemon.listeners.accepting import log_not_accepted
from echod.daemon.listeners.base import Listener
from echod.daemon.listeners.group import Ports
from echod.daemon.listeners.kinds import (
    control_listener,
    echo_listener,
    import_extra,
    metrics_listener,
)
from echod.daemon.listeners.systemd import METRICS, TLS, PassedListener, PassedSocket, adopt
from echod.daemon.listeners.tcp import TCPListener
from echod.daemon.logs import ConnectionLog
from echod.daemon.options import Options
from echod.daemon.service import EchoService
from echod.daemon.signals import Signals
from echod.daemon.summary import RateLimitedSummary
from echod.events import Observer, broadcast
from echod.factory import EchoFactory
from echod.faultplan import Plan
from echod.faults import Faults
from echod.limits import descriptors_left
from echod.udp import EchoDatagrams
from echod.udprules import Rules

log = Logger(namespace="echod")


def makeService(options: Options) -> EchoService:
    """Return the service that ``twistd echod`` runs, and install its signal handlers.

    :raises CannotServe: for an option or a passed socket that cannot be served.
    :raises WrongOption: for a mistake in an option, such as an endpoint description that Twisted
        cannot parse; under twistd, exit with its status.
    """
    from twisted.internet import reactor as chosen  # noqa: PLC0415 - twistd chooses it first

    reactor: Any = chosen
    # Before the first timer: twistd's reactors follow the time of day.
    use_monotonic_time(reactor)
    signals = Signals(reactor)
    if options.log_file is not None:
        signals.reopen_log(options.log_file.reopen)
    environ = systemd.pop_environment(os.environ, (*systemd.ENVIRONMENT, *sdnotify.ENVIRONMENT))
    try:
        service = build_service(options, reactor, environ)
    except WrongOption as error:
        options.refuse(error)
    signals.hasten = service.hasten
    if service.reload is not None:
        signals.reload_on_hangup(service.reload)
    prepare(options.parent)
    return service


def build_service(options: Options, reactor: Any, environ: Mapping[str, str]) -> EchoService:
    """Build the parts of the service, and connect them.

    :param environ: the variables that systemd has set for this process.
    :raises CannotServe: for an option, a variable or a passed socket that cannot be served.
    """
    sockets = systemd.passed_sockets(environ, os.getpid())
    connection_log = ConnectionLog(reactor, quiet=options["quiet"], verbose=options["verbose"])
    failures = RateLimitedSummary(reactor, log_not_accepted)
    for summary in (connection_log, failures):
        reactor.addSystemEventTrigger("after", "shutdown", summary.flush)
    http_listeners = metrics_listeners(options, sockets, reactor)
    web = import_extra("web", "metrics", "metrics need") if http_listeners else None
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
    notifier = sdnotify.notifier(reactor, lambda: len(factory.connections), environ, os.getpid())
    observers: list[Observer] = [connection_log]
    if notifier.address:
        observers.append(notifier)
    listeners = echo_listeners(options, sockets, reactor, datagrams)
    tls = [listener.tls for listener in listeners if listener.tls]
    faults = [listener.faults for listener in listeners if listener.faults]
    if faults:
        fault_log = FaultLog(reactor, faults, verbose=options["verbose"])
        reactor.addSystemEventTrigger("after", "shutdown", fault_log.flush)
        observers.append(fault_log)
        notifier.faulty = True
    echo = Ports(factory, listeners, failures)
    others: list[Ports] = []
    if web:
        tally = web.Tally()
        observers.append(tally)
        status = web.StatusPage(reactor, factory, datagrams, tally, lambda: echo.marked, faults)
        metrics = web.registry(tally, factory, datagrams, faults)
        pages = web.Pages(status, metrics, lambda: others[0].hosts)
        site = web.GuardedSite(pages, reactor)
        others.append(Ports(site, http_listeners, failures, "metrics"))
    if options["control"] is not None:
        listeners = [control_listener(reactor, options["control"])]
        control = import_module("echod.daemon.control")  # imports twisted.web
        site = control.ControlSite(control.Control(faults, datagrams.clock), reactor)
        others.append(Ports(site, listeners, failures, "control"))
    factory.observer = datagrams.observer = broadcast(*observers)
    for each in faults:
        each.observer = factory.observer
    return EchoService(
        reactor=reactor,
        factory=factory,
        echo=echo,
        others=others,
        drain_timeout=options["drain-timeout"],
        notifier=notifier,
        connection_limit=lambda: connection_limit(
            options["max-connections"],
            reactor,
            sum(cast(Any, ports.factory).max_connections for ports in others),
        ),
        reload=(lambda: [certificates.reload() for certificates in tls]) if tls else None,
        log_observer=None if options.log_file is None else options.log_file.observer,
    )


def connection_limit(option: int | None, reactor: object, reserved: int) -> int:
    """Return the number of connections that the file descriptors allow, or ``option`` if less.

    :param option: ``--max-connections``. If it is higher, a warning is logged.
    :param reactor: watches the descriptors of the connections.
    :param reserved: descriptors that the HTTP connections need.
    """
    of_reactor = descriptors_left(reactor)
    left = max(1, of_reactor - reserved)
    if option is None or option <= left:
        return option or left
    limit, remedy = "RLIMIT_NOFILE", "raise it (ulimit -n, or LimitNOFILE= of systemd)"
    if of_reactor < descriptors_left():
        limit, remedy = "select(2)", "choose another reactor"
    log.warn(
        "--max-connections {asked}: {limit} leaves room for {left} only; {remedy}",
        asked=option,
        left=left,
        limit=limit,
        remedy=remedy,
    )
    return left


def echo_listeners(
    options: Options, sockets: Sequence[PassedSocket], reactor: Any, datagrams: EchoDatagrams
) -> list[Listener]:
    """Return the listeners of the echo service: those of the options, and all passed sockets.

    A passed socket that no option names is served without TLS and without PROXY headers.

    :raises CannotServe: for an option or a socket that cannot be served, and for a socket with the
        name ``tls`` that no option names: it must not be served in plain text.
    """
    left = [each for each in sockets if each.name != METRICS]
    listeners = [echo_listener(reactor, datagrams, each, left) for each in options["listen"]]
    faulty: list[Listener] = []
    for name in ("--faulty", "--faults"):
        for endpoint, plan in options[name.removeprefix("--")] or ():
            faulty.append(echo_listener(reactor, datagrams, endpoint, left, name))
            set_plan(faulty[-1], plan, datagrams.clock.seconds())
    for each in left:
        if each.name == TLS:
            raise CannotServe(
                f"{each} is for TLS, and no option says with which certificate: "
                "add --listen ssl:systemd:name=tls:privateKey=FILE:certKey=FILE"
            )
    if not listeners and (options["has-address"] or not (left or faulty)):
        listeners.append(TCPListener("", reactor, options["port"], options["interface"]))
    if left:
        listeners.append(
            PassedListener("LISTEN_FDS", reactor, adopt(left, datagrams=True), datagrams)
        )
    return [*listeners, *faulty]


def set_plan(listener: Listener, plan: Plan, now: float) -> None:
    """Have the ports of ``listener`` misbehave as ``plan`` says.

    :param now: seconds, by a monotonic clock.
    :raises WrongOption: if the ports cannot have a rule of the plan.
    """
    try:
        listener.faults = Faults(plan, now, listener.serves)
    except ValueError as error:
        raise WrongOption(f"{listener.option}: {error}") from None


def metrics_listeners(
    options: Options, sockets: Sequence[PassedSocket], reactor: Any
) -> list[Listener]:
    """Return the HTTP listeners: that of ``--metrics``, and passed sockets named ``metrics``.

    :raises CannotServe: for an option or a socket that cannot be served.
    """
    listeners: list[Listener] = []
    passed = adopt([each for each in sockets if each.name == METRICS])
    if passed:
        listeners.append(PassedListener("LISTEN_FDS", reactor, passed))
    description = options["metrics"]
    if description is not None:
        if description.lower().startswith("systemd:"):
            raise WrongOption(
                "--metrics takes no systemd: endpoint, but any socket that is passed with the name "
                "metrics (FileDescriptorName=)"
            )
        listeners.append(metrics_listener(reactor, description, f"--metrics {description!r}"))
    return listeners
