"""A client on Twisted that sends a question over UDP, and sends it again until it is answered."""

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ConnectedDatagramProtocol


class Question(ConnectedDatagramProtocol):
    """One question, sent again every 0.1 s until the answer comes."""

    def __init__(self, reactor, host, port, message):
        self.answer = Deferred()
        self.sent = 0
        self._reactor, self._address, self._message = reactor, (host, port), message

    def startProtocol(self):
        self.transport.connect(*self._address)
        self._send()

    def datagramReceived(self, datagram, _):
        if not self.answer.called:
            self._timer.cancel()
            self.answer.callback(datagram)

    def _send(self):
        self.transport.write(self._message)
        self.sent += 1
        self._timer = self._reactor.callLater(0.1, self._send)


async def ask(reactor, host, port, message):
    """Return the answer to ``message``, and how often it was sent."""
    question = Question(reactor, host, port, message)
    listening = reactor.listenUDP(0, question, interface="127.0.0.1")
    try:
        return await question.answer, question.sent
    finally:
        await listening.stopListening()
