"""Whether this kernel can refuse descriptors that are passed over a UNIX socket."""

from __future__ import annotations

import socket

from echod.socketoptions import refuse_descriptors

with socket.socket(socket.AF_UNIX) as unix_socket:
    REFUSES_DESCRIPTORS = refuse_descriptors(unix_socket)
    """SO_PASSRIGHTS needs Linux 6.16."""
