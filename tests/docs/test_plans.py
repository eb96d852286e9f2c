"""docs/fault-plans.rst: each plan is valid, and all conditions and faults are there."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from docutils import nodes
from twisted.internet.protocol import Factory

from echod.faultgrammar import parse_plan
from echod.faultplan import ARGUMENTS, DATAGRAM, OF_STREAMS, OF_TLS, STREAM, Choice, Rule, When
from echod.faulty import FaultyEchoFactory
from echod.testing import MemoryNetwork, Peer
from tests import ROOT
from tests.docs.test_all import blocks, section, tree

PAGE = tree(ROOT / "docs" / "fault-plans.rst")
PLANS = section(PAGE, "Plans")


def columns(part: nodes.Element) -> list[list[str]]:
    """Return the texts of the cells of each row of the tables, without the heads."""
    rows: list[Any] = [row for body in part.findall(nodes.tbody) for row in body.children]
    return [[" ".join(cell.astext().split()) for cell in row.children] for row in rows]


CONDITIONS = [cells[-1] for cells in columns(section(PLANS, "Conditions"))]
FAULTS = [cells[0] for cells in columns(section(PLANS, "Faults"))]
TLS_FAULTS = [cells[0] for cells in columns(section(PAGE, "Faults of TLS"))]


def the_rule(text: str) -> Rule:
    [rule] = parse_plan(text).rules
    return rule


@pytest.mark.parametrize("text", [*CONDITIONS, *FAULTS])
def test_examples(text: str) -> None:
    """Each example is a rule, for a port of streams or of datagrams."""
    serves = STREAM if the_rule(text).fault.name in OF_STREAMS else DATAGRAM
    parse_plan(text).check(serves)


def test_all_conditions() -> None:
    """The examples have each condition."""
    rules = [the_rule(text) for text in CONDITIONS]
    choices = [choice for rule in rules for choice in (rule.when.which, rule.when.where) if choice]
    for kind, examples in ((When, [rule.when for rule in rules]), (Choice, choices)):
        for each in fields(kind):
            values = {getattr(example, each.name) for example in examples}
            assert values - {each.default} or each.name == "add", each.name


def test_all_faults() -> None:
    """The examples have each fault, and each distribution of delays."""
    faults = [the_rule(text).fault for text in FAULTS]
    assert {fault.name for fault in faults} == set(ARGUMENTS) - set(OF_TLS)
    assert {fault.shape for fault in faults} == {"constant", "uniform", "normal", "exponential"}
    assert set(TLS_FAULTS) == set(OF_TLS)


@pytest.mark.parametrize(
    ("plan", "reply"), [cells[:2] for cells in columns(section(PAGE, "How rules compose"))]
)
def test_composition(plan: str, reply: str) -> None:
    """Each plan of the table gives the reply of the table."""
    network = MemoryNetwork()
    network.server_endpoint().listen(FaultyEchoFactory(parse_plan(plan)))
    connected: list[Peer] = []
    endpoint = network.client_endpoint()
    endpoint.connect(Factory.forProtocol(Peer)).addCallback(connected.append)
    [peer] = connected
    peer.send(b"abcdef")
    network.settle()
    assert bytes(peer.received).decode() == ("" if reply == "nothing" else reply)


def test_first_plan() -> None:
    """The first plan is valid."""
    [plan] = blocks(PLANS, "text")
    assert str(parse_plan(plan)) == plan
