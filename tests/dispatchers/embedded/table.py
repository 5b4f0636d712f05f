"""A queue with its peers on a table: packets in, packets out, no sockets, and a clock that stands until it is moved."""

from dataclasses import dataclass, field, replace

from fleetd.codecs.gearman import Decoder, Kind, Packet
from fleetd.dispatchers.embedded import commands, packets
from fleetd.dispatchers.embedded.journal import STRIDE
from fleetd.dispatchers.embedded.model import Batch, Peer, Row
from fleetd.dispatchers.embedded.queue import Queue
from fleetd.dispatchers.embedded.rules import Rules


@dataclass
class Table:
    """`disk` is what a journal would hold."""

    rules: Rules = field(default_factory=Rules)
    now: float = 1_000_000.0
    disk: dict[int, Row] = field(default_factory=dict)
    starts: int = 1
    taken: Batch | None = None

    def __post_init__(self) -> None:
        self.queue = Queue(self.rules, self.starts * STRIDE if self.rules.durable else 0)
        self.idents = 0
        self.decoders: dict[Peer, Decoder] = {}

    def join(self) -> Peer:
        self.idents += 1
        peer = self.queue.join(self.idents, "127.0.0.1")
        self.decoders[peer] = Decoder()
        return peer

    def worker(self, *functions: bytes) -> Peer:
        peer = self.join()
        for name in functions:
            self.tell(peer, Kind.CAN_DO, name)
        return peer

    def tell(self, peer: Peer, kind: Kind, *args: bytes) -> list[Packet]:
        """Send a packet and return what came back at once."""
        packets.receive(self.queue, peer, Packet(kind, args), self.now)
        return self.heard(peer)

    def heard(self, peer: Peer) -> list[Packet]:
        """Return what a peer was sent since."""
        data, peer.out[:] = b"".join(peer.out), []
        return self.decoders[peer].feed(data)

    def kinds(self, peer: Peer) -> list[Kind]:
        return [packet.kind for packet in self.heard(peer)]

    def line(self, peer: Peer, text: str) -> str:
        commands.receive(self.queue, peer, text.encode(), self.now, 1)
        data, peer.out[:] = b"".join(peer.out), []
        return data.decode()

    def submit(self, peer: Peer, kind: Kind = Kind.SUBMIT_JOB, unique: bytes = b"", name: bytes = b"f") -> bytes:
        """Return the handle."""
        (answer,) = self.tell(peer, kind, name, unique, b"payload")
        assert answer.kind is Kind.JOB_CREATED, answer
        return answer.args[0]

    def grab(self, peer: Peer) -> bytes | None:
        """Return the handle of the job that was handed out."""
        for packet in self.tell(peer, Kind.GRAB_JOB_UNIQ):
            if packet.kind is Kind.JOB_ASSIGN_UNIQ:
                return packet.args[0]
        return None

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.queue.timers.tick(self.now)

    def take(self) -> None:
        assert self.taken is None
        self.taken = self.queue.gather.take()

    def settle(self, *, good: bool = True) -> None:
        """Do with the batch what the journal does."""
        batch, self.taken = self.taken, None
        assert batch is not None
        if good:
            for row in batch.rows:
                self.disk[row.number] = row
            for number, attempts in batch.attempts.items():
                if (old := self.disk.get(number)) is not None:
                    self.disk[number] = replace(old, attempts=attempts, dead="", died=0.0)
            for number in batch.ends:
                self.disk.pop(number, None)
        self.queue.settle(batch, self.now, good=good)

    def commit(self, *, good: bool = True) -> None:
        self.take()
        self.settle(good=good)

    def crash(self) -> "Table":
        """Return what comes up after a SIGKILL."""
        table = Table(self.rules, self.now, dict(self.disk), self.starts + 1)
        rows = sorted(self.disk.values(), key=lambda row: (row.since, row.number))
        table.queue.recover(rows, self.now)
        return table
