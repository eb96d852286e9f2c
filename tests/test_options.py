"""The command line: what it takes, and the one line that it answers to what it does not."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.options import CannotServe, Options


def parse(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


class OptionsTests(SynchronousTestCase):
    def refused(self, *arguments: str) -> str:
        refusal = self.assertRaises(CannotServe, parse, *arguments)
        line = str(refusal)
        self.assertNotIn("\n", line)
        self.assertTrue(line.startswith("twistd echod: "), line)
        return line

    def test_defaults(self) -> None:
        """By default it is loopback, port 65432, no limit but the stall timeout."""
        expected: dict[str, Any] = {
            "port": 65432,
            "interface": [],
            "listen": [],
            "idle-timeout": None,
            "stall-timeout": 60.0,
            "drain-timeout": 10.0,
            "max-connections": None,
            "max-connections-per-peer": None,
            "quiet": False,
        }
        options = parse()
        self.assertEqual({name: options[name] for name in expected}, expected)

    def test_values(self) -> None:
        """Each option has its value's own type."""
        options = parse(
            *("--port", "0", "--interface", "127.0.0.1", "--interface", "::1"),
            *("--idle-timeout", "1.5", "--stall-timeout", "2", "--drain-timeout", "0"),
            *("--max-connections", "10", "--max-connections-per-peer", "1", "--quiet"),
        )
        self.assertEqual(options["port"], 0)
        self.assertEqual(options["interface"], ["127.0.0.1", "::1"])
        self.assertEqual(options["idle-timeout"], 1.5)
        self.assertEqual(options["stall-timeout"], 2.0)
        self.assertEqual(options["drain-timeout"], 0.0)
        self.assertEqual(options["max-connections"], 10)
        self.assertEqual(options["max-connections-per-peer"], 1)
        self.assertIs(options["quiet"], True)

    def test_interface_twice(self) -> None:
        """An interface that is named twice is meant once."""
        options = parse("--interface", "::1", "--interface", "::1")
        self.assertEqual(options["interface"], ["::1"])

    def test_listen(self) -> None:
        """--listen may be repeated, and stands in place of --port and --interface."""
        options = parse("--listen", "tcp:0", "--listen", "unix:/run/x")
        self.assertEqual(options["listen"], ["tcp:0", "unix:/run/x"])
        for other in (("--port", "65432"), ("--interface", "::1")):
            self.assertIn("--listen", self.refused("--listen", "tcp:0", *other))

    def test_bad_numbers(self) -> None:
        """A number that makes no sense is answered with the option and what it takes."""
        for name, takes, bad in (
            ("port", "from 0 to 65535", ("http", "-1", "65536", "1.5", "")),
            ("max-connections", "1 or more", ("0", "-1", "many", "1.5", "")),
            ("max-connections-per-peer", "1 or more", ("0", "-1", "many")),
            ("idle-timeout", "seconds, more than 0", ("0", "-1", "inf", "nan", "soon", "")),
            ("stall-timeout", "seconds, more than 0", ("0", "-1", "inf", "nan", "soon")),
            ("drain-timeout", "seconds, 0 or more", ("-1", "inf", "nan", "soon")),
        ):
            for value in bad:
                line = self.refused(f"--{name}", value)
                self.assertIn(f"--{name} takes a", line)
                self.assertIn(takes, line)
                self.assertIn(repr(value), line)

    def test_bad_interface(self) -> None:
        """An interface is an IP address, not a name."""
        for value in ("eth0", "localhost", "256.0.0.1", ""):
            self.assertIn("--interface takes an IPv4 or IPv6", self.refused("--interface", value))

    def test_both_wildcards(self) -> None:
        """All of IPv6 takes all of IPv4 too: to ask for both would be a port in use."""
        line = self.refused("--interface", "0.0.0.0", "--interface", "::")
        self.assertIn("leave out 0.0.0.0", line)

    def test_unknown(self) -> None:
        """An unknown option, a missing value and stray arguments are named."""
        self.assertIn("--prot", self.refused("--prot", "7"))
        self.assertIn("--port", self.refused("--port"))
        self.assertIn("'some thing'", self.refused("some", "thing"))

    @given(st.text(), st.sampled_from(["port", "max-connections", "idle-timeout", "interface"]))
    def test_any_text(self, value: str, name: str) -> None:
        """Whatever a value is, it is taken or answered with one line, printable as it is."""
        try:
            parse(f"--{name}", value)
        except CannotServe as refusal:
            self.assertTrue(str(refusal).isprintable())

    def test_any_option(self) -> None:
        """An option that is not printable is shown in a printable way, on one line."""
        self.assertTrue(self.refused("--foo\nbar").isprintable())
        self.assertTrue(self.refused("--interface", "x\n\x1b[2J").isprintable())

    def test_version(self) -> None:
        """--version tells echod's version."""
        out = io.StringIO()
        self.patch(__import__("sys"), "stdout", out)
        ended = self.assertRaises(SystemExit, parse, "--version")
        self.assertFalse(ended.code)
        self.assertRegex(out.getvalue(), r"^echod \d+\.\d+")
