"""The command line of the daemon: values, and one line for a mistake."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import tempfile
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.scripts.twistd import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.errors import CannotServe
from echod.daemon.options import Options
from echod.daemon.optiontable import TOPICS
from echod.faultplan import Plan, when

OPTIONS = [option for topic in TOPICS.values() for option in topic]
NAMES = [
    option.name
    for option in OPTIONS
    if option.parse is not str and option.name not in ("faulty", "faults")
]


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
        """The defaults: loopback, port 65432, a stall timeout, no other limit."""
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
            "verbose": False,
        }
        options = parse()
        self.assertEqual({name: options[name] for name in expected}, expected)

    def test_values(self) -> None:
        """Each value has its own type."""
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
        self.assertIs(options["verbose"], False)

    def test_durations(self) -> None:
        """A duration has a unit of ms, s, m or h, or is in seconds."""
        names = ("idle", "stall", "handshake", "drain")
        for text, seconds in (("250ms", 0.25), ("30s", 30), ("10m", 600), ("2h", 7200), ("5", 5)):
            options = parse(*(f"--{name}-timeout={text}" for name in names), "--udp-longest", text)
            self.assertEqual({options[f"{name}-timeout"] for name in names}, {seconds})
            self.assertEqual(options["udp-longest"], seconds)

    def test_interface_twice(self) -> None:
        """A repeated interface counts once."""
        options = parse("--interface", "::1", "--interface", "::1")
        self.assertEqual(options["interface"], ["::1"])

    def test_listen(self) -> None:
        """--listen can be repeated, and excludes --port and --interface."""
        options = parse("--listen", "tcp:0", "--listen", "unix:/run/x")
        self.assertEqual(options["listen"], ["tcp:0", "unix:/run/x"])
        for other in (("--port", "65432"), ("--interface", "::1")):
            self.assertIn("--listen", self.refused("--listen", "tcp:0", *other))

    def test_faulty(self) -> None:
        """--faulty takes an endpoint and a plan, can be repeated, and stands beside --port."""
        options = parse(
            *("--faulty", "tcp:0", "first 2: refuse; seed 7", "--port", "0"),
            *("--faulty=udp:0", "drop; seed 8", "--quiet"),
        )
        plans = [Plan((when.first(2).refuse(),), 7), Plan((when.drop(),), 8)]
        self.assertEqual(options["faulty"], list(zip(("tcp:0", "udp:0"), plans, strict=True)))
        self.assertTrue(options["has-address"])
        self.assertFalse(parse("--faulty", "tcp:0", "refuse")["has-address"])
        self.patch(sys, "argv", ["echod", "--faulty", "tcp:0", "refuse"])
        options = Options()
        options.parseOptions()
        self.assertEqual([endpoint for endpoint, _ in options["faulty"]], ["tcp:0"])

    def test_faults(self) -> None:
        """--faults names a file of endpoints and plans, or the mistake in it."""
        self.assertIn("--faults=/no: No such file or directory", self.refused("--faults", "/no"))
        with tempfile.NamedTemporaryFile("w") as file:
            file.write('[[port]]\nlisten = "tcp:0"\nrules = ["drop"]\nseed = 8\n')
            file.flush()
            options = parse("--faults", file.name)
        self.assertEqual(options["faults"], [("tcp:0", Plan((when.drop(),), 8))])
        self.assertFalse(options["has-address"])

    def test_wrong_plan(self) -> None:
        """A mistake in a plan has a caret before it, and names the option and the endpoint."""
        line = self.refused("--faulty", "tcp:0", "first 2: refsue")
        self.assertIn("--faulty 'tcp:0': 'first 2: ^refsue': ", line)

    def test_control(self) -> None:
        """--control is refused without a faulty port."""
        self.assertEqual(parse("--control", "x", "--faulty", "tcp:0", "drop")["control"], "x")
        self.assertIn("--control needs a faulty port", self.refused("--control", "tcp:0"))

    def test_faulty_with_a_word_missing(self) -> None:
        """An endpoint without a plan is refused, with an example."""
        for words in (
            ("--faulty",),
            ("--faulty=",),
            ("--faulty", "tcp:0"),
            ("--faulty=tcp:0",),
            ("--faulty", "tcp:0", ""),
            ("--faulty", "tcp:0", "--quiet"),
            ("--faulty", "--quiet", "first 2: refuse"),
        ):
            self.assertIn(
                "--faulty needs an endpoint and a plan, as in --faulty tcp:65433 'first 2: refuse'",
                self.refused(*words),
            )

    def test_bad_numbers(self) -> None:
        """The error about an invalid number names the option and says what it takes."""
        for name, takes, bad in (
            ("port", "whole number from 0 to 65535", ("http", "-1", "65536", "1.5", "", "7_0")),
            ("max-connections", "from 1 to 1000000000", ("0", "-1", "many", "1.5", "", "9e99")),
            ("max-connections-per-peer", "from 1 to 1000000000", ("0", "-1", "many", "9" * 5000)),
            ("idle-timeout", "1ms to 250000h", ("0", "-1", "inf", "nan", "soon", "", "1e-320")),
            ("stall-timeout", "1ms to 250000h", ("0", "-1", "inf", "nan", "9e99", "1 m", "10d")),
            ("handshake-timeout", "1ms to 250000h", ("0", "0.9ms", "250001h")),
            ("drain-timeout", "0s to 250000h", ("-1", "inf", "nan", "soon")),
            ("udp-longest", "1ms to 250000h", ("0", "m")),
            ("udp-rate", "0.001 to 1000000000", ("0", "1e-320", "nan", "inf", "-1", "", "9e99")),
            ("udp-total-rate", "0.001 to 1000000000", ("0", "many", "1/s")),
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
        """The IPv6 wildcard takes IPv4 too: both together would be an address in use."""
        line = self.refused("--interface", "0.0.0.0", "--interface", "::")
        self.assertIn("leave out 0.0.0.0", line)

    def test_quiet_and_verbose(self) -> None:
        """--quiet and --verbose exclude each other."""
        line = self.refused("--quiet", "--verbose")
        self.assertIn("--quiet and --verbose exclude each other: give one or neither", line)
        self.assertIs(parse("--verbose")["verbose"], True)

    def test_unknown(self) -> None:
        """Errors about options are in the user's terms, and name stray arguments."""
        for argument, line in (
            ("--prot", "there is no option --prot"),
            ("-p", "there is no option -p"),
            ("--=7", "there is no option --"),
            ("--port", "--port needs a value, PORT"),
            ("--idle", "--idle-timeout needs a value, DURATION"),
            ("--quiet=yes", "--quiet takes no value"),
            ("--m=7", "--m may mean --max-connections or --max-connections-per-peer or --metrics"),
        ):
            why = f"twistd echod: {line}; see twistd -n echod --help"
            self.assertEqual(self.refused(argument), why)
        self.assertIn("'some thing'", self.refused("some", "thing"))

    @given(st.text(), st.sampled_from(NAMES))
    def test_any_text(self, value: str, name: str) -> None:
        """Any value is accepted, or refused in one printable line."""
        try:
            parse(f"--{name}", value)
        except CannotServe as refusal:
            self.assertTrue(str(refusal).isprintable())
            self.assertTrue(refusal.why.startswith((f"--{name} takes a", "takes no")), refusal)

    def test_help(self) -> None:
        """The help has each option once, with its value, under a topic, in 80 columns."""
        self.patch(os, "environ", {**os.environ, "COLUMNS": "80"})
        lines = str(Options()).splitlines()
        self.assertEqual(lines[0], "Usage: twistd [options of twistd] echod [options]")
        topics = [line for line in lines if re.fullmatch("[A-Z][A-Za-z ]+:", line)]
        self.assertEqual(topics, [*(f"{topic}:" for topic in TOPICS), "Examples:"])
        options = [option for topic in TOPICS.values() for option in topic]
        names = re.findall(r"(?m)^  (--\S+(?: \S+)*)", str(Options()))
        self.assertEqual(names, [option.words for option in options])
        self.assertEqual([line for line in lines[:-4] if len(line) > 80], [])

    def test_print_help(self) -> None:
        """--help and -h print the help, and exit with status 0."""
        self.addCleanup(signal.signal, signal.SIGPIPE, signal.getsignal(signal.SIGPIPE))
        for argument in ("--help", "-h"):
            out = io.StringIO()
            self.patch(sys, "stdout", out)
            ended = self.assertRaises(SystemExit, parse, argument)
            self.assertFalse(ended.code)
            self.assertEqual(out.getvalue(), f"{Options()}\n")

    def test_full_disk(self) -> None:
        """Where standard output cannot be written, the error is one line."""
        self.addCleanup(signal.signal, signal.SIGPIPE, signal.getsignal(signal.SIGPIPE))
        with open("/dev/full", "w") as full:
            self.patch(sys, "stdout", full)
            line = str(self.assertRaises(CannotServe, parse, "--help"))
        self.assertIn("standard output: no space left on device", line)

    def test_option_of_twistd(self) -> None:
        """An option of twistd after the subcommand has its own error; twistd exits with 2."""
        for argument, why in (
            ("--pidfile=x", "--pidfile is an option of twistd: give it before echod"),
            ("-n", "-n is an option of twistd: give it before echod"),
            ("--port=x", "--port takes a whole number from 0 to 65535, not 'x'"),
            ("--prot", "there is no option --prot"),
        ):
            options = Options()
            options.parent = ServerOptions()
            printed = io.StringIO()
            self.patch(sys, "stderr", printed)
            ended = self.assertRaises(SystemExit, options.parseOptions, [argument])
            line = f"twistd echod: {why}; see twistd -n echod --help\n"
            self.assertEqual((ended.code, printed.getvalue()), (2, line))

    def test_pid_file(self) -> None:
        """A pid file that twistd cannot write is refused in one line, unless there is a chroot."""
        for arguments, refused in (
            (["--pidfile", "/no/such/directory/pid"], True),
            (["--pidfile", "/no/such/directory/pid", "--chroot", "/"], False),
            (["--pidfile", os.path.join(tempfile.gettempdir(), "echod.pid")], False),
            (["--pidfile", __file__], False),
            (["--pidfile="], False),
        ):
            options = Options()
            options.parent = ServerOptions()
            options.parent.parseOptions(["-n", *arguments])
            if refused:
                refusal = self.assertRaises(CannotServe, options.parseOptions, [])
                self.assertIn("--pidfile /no/such/directory/pid: cannot write a file", refusal.why)
                self.assertIn("or none (--pidfile=)", refusal.why)
            else:
                options.parseOptions([])

    def test_table(self) -> None:
        """Each row of the table is an option, and each option has a row."""
        options = Options()
        names = {option.name for topic in TOPICS.values() for option in topic}
        self.assertEqual({name.rstrip("=") for name in options.longOpt}, names)

    def test_any_option(self) -> None:
        """An unprintable option is escaped in the error."""
        self.assertTrue(self.refused("--foo\nbar").isprintable())
        self.assertTrue(self.refused("--interface", "x\n\x1b[2J").isprintable())

    def test_version(self) -> None:
        """--version prints echod's version."""
        self.addCleanup(signal.signal, signal.SIGPIPE, signal.getsignal(signal.SIGPIPE))
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        ended = self.assertRaises(SystemExit, parse, "--version")
        self.assertFalse(ended.code)
        self.assertRegex(out.getvalue(), r"^echod \d+\.\d+")
