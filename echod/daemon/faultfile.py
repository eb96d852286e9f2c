"""Plans of faults in a TOML file: for each port, where it listens, its rules, and its seed."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from echod.arguments import check_type, check_whole
from echod.daemon.errors import WrongOption
from echod.faulterrors import PlanError
from echod.faultgrammar import parse_plan
from echod.faultplan import MAX_NUMBER, Plan, Rule

MAX_BYTES: Final = 1 << 20
"""Bytes: the longest file."""

KEYS: Final = ("listen", "rules", "seed")
"""The keys of a port. ``seed`` is optional."""


def read_faults(path: str) -> list[tuple[str, Plan]]:
    """Return the endpoint and the plan of each port in the TOML file at ``path``.

    :raises WrongOption: for a file that cannot be read, or has a mistake.
    """
    try:
        return [_read(table, f"port {number}") for number, table in enumerate(_load(path), 1)]
    except OSError as error:
        raise WrongOption(f"--faults={path}: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise WrongOption(f"--faults={path}: {error}") from None


def _load(path: str) -> list[object]:
    with open(path, "rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    toml = _import_toml()
    try:
        document = toml.loads(text.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error.reason} (at byte {error.start + 1})") from None
    except (ValueError, RecursionError) as error:  # not TOML, or nested too deeply
        raise ValueError(f"is not TOML: {error}") from None
    ports = document.pop("port", None)
    if document or not isinstance(ports, list) or not ports:
        wrong = f", not {', '.join(document)}" if document else ""
        raise ValueError(f"takes tables [[port]] with the keys {', '.join(KEYS)}{wrong}")
    return ports


def _import_toml() -> Any:
    for name in ("tomllib", "tomli"):
        try:
            return import_module(name)
        except ImportError:  # tomllib is new in Python 3.11
            continue
    raise ValueError("needs tomli, which is not installed: install echod with its extra faults")


def _read(table: Any, where: str) -> tuple[str, Plan]:
    """Return the endpoint and the plan of one port.

    :param where: the number of the port, for error messages.
    """
    check_type(where, table, dict, "a table")
    for key in table:
        if key not in KEYS:
            raise ValueError(f"{where}: there is no key {key!r}; the keys are {', '.join(KEYS)}")
    for key in ("listen", "rules"):
        if key not in table:
            raise ValueError(f"{where}: there is no key {key!r}; a port needs listen and rules")
    check_type(f"{where}: listen", table["listen"], str, 'an endpoint, such as "tcp:65433"')
    texts = table["rules"]
    check_type(f"{where}: rules", texts, list, 'a list, such as ["first 2: refuse"]')
    if not texts:
        raise ValueError(f"{where}: rules takes at least one rule")
    seed = table.get("seed", Plan().seed)
    check_whole(f"{where}: seed", seed, 0, MAX_NUMBER)
    rules: list[Rule] = []
    for number, text in enumerate(texts, 1):
        rule = f"{where}, rule {number}"
        check_type(rule, text, str, 'text, such as "first 2: refuse"')
        try:
            rules += parse_plan(text, seed).rules
        except PlanError as error:
            raise ValueError(f"{rule}: {error}") from None
    return table["listen"], Plan(tuple(rules), seed)
