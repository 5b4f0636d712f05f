"""What every Gearman dispatcher must do, by bytes on a socket. Run against gearmand and against fleetd's own.

A subclass gives the fixture `server`, and its `differs`: where the two part on purpose, each with the reason.
"""

import itertools
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest

from fleetd.codecs import admin
from fleetd.codecs.gearman import Kind
from tests.conformance.gearman_peer import Peer, ask, left
from tests.servers import Server

BG = Kind.SUBMIT_JOB_BG


@dataclass(frozen=True, slots=True)
class Differences:
    """The defaults are gearmand's ways."""

    # A foreground client leaves, and a background submission had joined its job: gearmand drops it, a silent loss.
    keeps_joined: bool = False
    # CANT_DO while a job of that function runs: gearmand queues the job again, and it runs twice.
    cant_do_requeues: bool = True
    # A worker of two functions: gearmand empties the one it was told of last; ours takes turns.
    takes_turns: bool = False
    # WORK_EXCEPTION to a client without that option: gearmand's WORK_FAIL has a NUL behind the handle.
    fail_tail: bytes = b"\0"
    # A job whose epoch is to come: gearmand counts it as waiting, which would start workers for nothing.
    epoch_waits: bool = True
    # A sleeping worker when an epoch comes: gearmand lets it sleep.
    epoch_wakes: bool = False
    # Of sleeping workers one job wakes: all, or one (gearmand's --worker-wakeup=1).
    wakes_all: bool = True
    # Foreground jobs that nobody waits for any more: gearmand counts them until a worker passes over them.
    counts_abandoned: bool = True
    # SUBMIT_JOB without a function's name: gearmand takes it.
    takes_nameless: bool = True
    # Packets that lose an argument: gearmand waits for ever, ours closes the connection.
    closes_malformed: bool = False
    # `oldest`, `dead`: only ours.
    knows_oldest: bool = False


class DispatcherConformance:
    """Each test has a dispatcher of its own."""

    differs: ClassVar[Differences] = Differences()

    # ── submissions and their ends

    @pytest.mark.parametrize("kind", [Kind.SUBMIT_JOB, Kind.SUBMIT_JOB_HIGH, Kind.SUBMIT_JOB_LOW])
    def test_a_foreground_job_goes_there_and_back(self, server: Server, kind: Kind) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            handle = client.submit(kind, payload=b"in\0side")
            assert worker.grab().args == (handle, b"f", b"", b"in\0side")
            worker.send(Kind.WORK_STATUS, handle, b"1", b"2")
            worker.send(Kind.WORK_DATA, handle, b"part")
            worker.send(Kind.WORK_WARNING, handle, b"careful")
            worker.send(Kind.WORK_COMPLETE, handle, b"out\0side")
            assert [(p.kind, p.args[1:]) for p in client.read(4)] == [
                (Kind.WORK_STATUS, (b"1", b"2")),
                (Kind.WORK_DATA, (b"part",)),
                (Kind.WORK_WARNING, (b"careful",)),
                (Kind.WORK_COMPLETE, (b"out\0side",)),
            ]
            assert worker.grab_nothing()

    @pytest.mark.parametrize("kind", [BG, Kind.SUBMIT_JOB_HIGH_BG, Kind.SUBMIT_JOB_LOW_BG])
    def test_a_background_job_outlives_its_client(self, server: Server, kind: Kind) -> None:
        with Peer(server) as client:
            handle = client.submit(kind, unique=b"u", payload=b"p")
        with Peer(server, b"f") as worker:
            assert worker.grab().args == (handle, b"f", b"u", b"p")

    def test_plain_grab_tells_no_unique_and_grab_all_does(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            first, second = client.submit(BG, unique=b"u"), client.submit(BG, unique=b"v")
            assert worker.ask(Kind.GRAB_JOB).args == (first, b"f", b"p")
            assert worker.ask(Kind.GRAB_JOB_ALL).args == (second, b"f", b"v", b"p")

    def test_a_large_payload_and_a_large_result_arrive_whole(self, server: Server) -> None:
        payload, result = b"p" * 256 * 1024, b"r" * 4 * 1024 * 1024
        with Peer(server) as client, Peer(server, b"f") as worker:
            handle = client.submit(payload=payload)
            assert worker.grab().args[3] == payload
            worker.send(Kind.WORK_COMPLETE, handle, result)
            assert client.read_one().args == (handle, result)

    def test_a_failure_reaches_the_client(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            handle = client.submit()
            worker.grab()
            worker.send(Kind.WORK_FAIL, handle)
            assert client.read_one().args == (handle,)

    def test_an_exception_reaches_who_asked_for_it_and_is_a_failure_to_others(self, server: Server) -> None:
        with Peer(server) as asker, Peer(server) as other, Peer(server, b"f") as worker:
            assert asker.ask(Kind.OPTION_REQ, b"exceptions").kind is Kind.OPTION_RES
            handle = asker.submit(unique=b"u")
            assert other.submit(unique=b"u") == handle
            worker.grab()
            worker.send(Kind.WORK_EXCEPTION, handle, b"text")
            assert asker.read_one() == (Kind.WORK_EXCEPTION, (handle, b"text"))
            assert other.read_one() == (Kind.WORK_FAIL, (handle + self.differs.fail_tail,))
            worker.send(Kind.WORK_FAIL, handle)
            assert worker.read_one().args[0] == b"JOB_NOT_FOUND"

    def test_one_unique_is_one_job_within_a_function(self, server: Server) -> None:
        with Peer(server) as client, Peer(server) as other, Peer(server, b"f") as worker:
            handle = client.submit(unique=b"u", payload=b"first")
            assert other.submit(unique=b"u", payload=b"second") == handle
            assert other.submit(BG, unique=b"u", name=b"g") != handle
            assert worker.grab().args[3] == b"first"
            worker.send(Kind.WORK_COMPLETE, handle, b"r")
            assert client.read_one() == other.read_one() == (Kind.WORK_COMPLETE, (handle, b"r"))
            assert client.submit(unique=b"u") != handle

    def test_a_client_that_asks_twice_hears_twice(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            handle = client.submit(unique=b"u")
            assert client.submit(unique=b"u") == handle
            worker.grab()
            worker.send(Kind.WORK_COMPLETE, handle, b"r")
            assert client.read(2) == [(Kind.WORK_COMPLETE, (handle, b"r"))] * 2

    def test_a_background_job_that_joined_a_foreground_job(self, server: Server) -> None:
        with Peer(server) as other, Peer(server, b"f") as worker:
            with Peer(server) as client:
                handle = client.submit(unique=b"u")
                assert other.submit(BG, unique=b"u") == handle
            left(server, 2)
            packet = worker.ask(Kind.GRAB_JOB_UNIQ)
            assert (packet.kind is Kind.JOB_ASSIGN_UNIQ) == self.differs.keeps_joined

    # ── order

    def test_higher_priorities_first_and_equals_in_order(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            low = client.submit(Kind.SUBMIT_JOB_LOW_BG)
            normal = [client.submit(BG), client.submit(), client.submit(BG)]
            high = client.submit(Kind.SUBMIT_JOB_HIGH_BG)
            assert [worker.grab().args[0] for _ in range(5)] == [high, *normal, low]

    def test_a_worker_of_two_functions(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"a", b"b") as worker:
            for name in (b"a", b"a", b"b", b"b"):
                client.submit(BG, name=name)
            order = [worker.grab().args[1] for _ in range(4)]
            assert order == ([b"a", b"b", b"a", b"b"] if self.differs.takes_turns else [b"b", b"b", b"a", b"a"])

    # ── workers that come, sleep and die

    def test_a_dead_workers_job_is_anothers_at_once(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as other:
            with Peer(server, b"f") as worker:
                handle = client.submit()
                worker.grab()
                other.sleep()
            assert other.read_one().kind is Kind.NOOP
            assert other.grab().args[0] == handle
            other.send(Kind.WORK_COMPLETE, handle, b"r")
            assert client.read_one().kind is Kind.WORK_COMPLETE

    def test_a_job_wakes_a_sleeper(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as one, Peer(server, b"f") as two, Peer(server, b"g") as third:
            for worker in (one, two, third):
                worker.sleep()
            client.submit()
            first = next(peer for peer in itertools.cycle((one, two)) if peer.hears(0.02))
            first.grab()
            other = two if first is one else one
            assert other.hears(0.4) == ([Kind.NOOP] if self.differs.wakes_all else [])
            assert third.hears() == []

    def test_who_goes_to_sleep_beside_a_job_is_woken(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            client.submit()
            assert worker.ask(Kind.PRE_SLEEP).kind is Kind.NOOP

    def test_cant_do_stops_new_jobs(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f", b"g") as worker:
            worker.send(Kind.CANT_DO, b"f")
            client.submit(BG)
            assert worker.grab_nothing()
            worker.send(Kind.RESET_ABILITIES)
            client.submit(BG, name=b"g")
            assert worker.grab_nothing()

    def test_cant_do_while_the_job_runs(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker, Peer(server, b"f") as other:
            client.submit(BG)
            worker.grab()
            worker.send(Kind.CANT_DO, b"f")
            worker.settle()
            packet = other.ask(Kind.GRAB_JOB_UNIQ)
            assert (packet.kind is Kind.JOB_ASSIGN_UNIQ) == self.differs.cant_do_requeues

    def test_a_foreign_or_unknown_handle_is_refused(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker, Peer(server, b"f") as other:
            handle = client.submit()
            worker.grab()
            for wrong in (handle, b"H:nobody:1"):
                assert other.ask(Kind.WORK_COMPLETE, wrong, b"").args[0] == b"JOB_NOT_FOUND"
            worker.send(Kind.WORK_COMPLETE, handle, b"")
            assert client.read_one().kind is Kind.WORK_COMPLETE

    @pytest.mark.slow
    def test_can_do_timeout_is_a_silent_lease(self, server: Server) -> None:
        with Peer(server) as client, Peer(server) as worker, Peer(server, b"f") as other:
            worker.send(Kind.CAN_DO_TIMEOUT, b"f", b"1")
            handle = client.submit()
            worker.grab()
            time.sleep(2.2)
            assert other.grab().args[0] == handle
            assert worker.ask(Kind.WORK_COMPLETE, handle, b"late").args[0] == b"JOB_NOT_FOUND"

    def test_a_foreground_job_is_not_run_for_nobody(self, server: Server) -> None:
        with Peer(server, b"f") as worker:
            with Peer(server) as client:
                client.submit()
            left(server, 1)
            counted = ask(server, "status").startswith("f\t1\t")
            assert counted == self.differs.counts_abandoned
            assert worker.grab_nothing()
            assert ask(server, "status") == "f\t0\t0\t1\n.\n"

    # ── epoch

    def test_an_epoch_job_runs_when_it_is_due(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            epoch = int(time.time()) + 2
            handle = client.ask(Kind.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % epoch, b"p").args[0]
            assert worker.grab_nothing()
            assert (ask(server, "prioritystatus") == "f\t0\t1\t0\t1\n.\n") == self.differs.epoch_waits
            worker.sleep()
            time.sleep(epoch + 0.3 - time.time())
            assert (worker.hears() == [Kind.NOOP]) == self.differs.epoch_wakes
            assert worker.grab().args[0] == handle

    # ── questions

    def test_status_of_a_job(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            handle = client.submit(BG, unique=b"u")
            assert client.ask(Kind.GET_STATUS, handle).args == (handle, b"1", b"0", b"0", b"0")
            worker.grab()
            worker.send(Kind.WORK_STATUS, handle, b"3", b"7")
            worker.settle()
            assert client.ask(Kind.GET_STATUS, handle).args == (handle, b"1", b"1", b"3", b"7")
            assert client.ask(Kind.GET_STATUS_UNIQUE, b"u").args == (b"u", b"1", b"1", b"3", b"7", b"0")
            worker.send(Kind.WORK_COMPLETE, handle, b"")
            worker.settle()
            assert client.ask(Kind.GET_STATUS, handle).args == (handle, b"0", b"0", b"0", b"0")
            assert client.ask(Kind.GET_STATUS_UNIQUE, b"u").args == (b"u", b"0", b"0", b"0", b"0", b"0")

    def test_echo_and_options(self, server: Server) -> None:
        with Peer(server) as client:
            assert client.ask(Kind.ECHO_REQ, b"a\0b").args == (b"a\0b",)
            assert client.ask(Kind.OPTION_REQ, b"exceptions").args == (b"exceptions",)
            assert client.ask(Kind.OPTION_REQ, b"nonsense").args[0] == b"UNKNOWN_OPTION"

    def test_refusals(self, server: Server) -> None:
        with Peer(server) as client:
            assert client.ask(BG, b"f", b"u" * 65, b"").args[0] == b"ARGUMENT_TOO_LARGE"
            nameless = client.ask(BG, b"", b"", b"")
            assert (nameless.kind is Kind.JOB_CREATED) == self.differs.takes_nameless
            assert ask(server, "maxqueue g 1") == "OK\r\n"
            client.submit(BG, name=b"g")
            assert ask(server, "maxqueue g 1") == "OK\r\n"
            assert client.ask(BG, b"g", b"", b"").args == (b"QUEUE_ERROR", b"Job queue is full")

    # ── malformed bytes

    @pytest.mark.parametrize("bad", [b"\0REQ\0\0\0\x4d\0\0\0\0", b"\0REQ\0\0\0\x63\0\0\0\x01x"])
    def test_an_unknown_packet_closes_only_its_connection(self, server: Server, bad: bytes) -> None:
        with Peer(server) as client, Peer(server) as fool:
            fool.sock.sendall(bad)
            assert fool.is_closed()
            assert client.submit(BG)

    @pytest.mark.parametrize("bad", [b"\0REQ\0\0\0\x07\0\0\0\x01x", b"\0RES\0\0\0\x07\0\0\0\0"])
    def test_a_malformed_packet_touches_no_other_connection(self, server: Server, bad: bytes) -> None:
        with Peer(server) as client, Peer(server) as fool:
            fool.sock.sendall(bad)
            assert fool.is_closed(0.3) == self.differs.closes_malformed
            assert client.submit(BG)

    # ── text commands

    def test_status_and_priority_status(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            for kind in (Kind.SUBMIT_JOB_HIGH_BG, BG, BG, Kind.SUBMIT_JOB_LOW_BG):
                client.submit(kind)
            worker.grab()
            lines = ask(server, "status").splitlines()[:-1]
            assert admin.parse_status(lines) == (admin.FunctionStatus("f", 4, 1, 1),)
            lines = ask(server, "prioritystatus").splitlines()[:-1]
            assert admin.parse_priority_status(lines) == (admin.FunctionBacklog("f", 0, 2, 1, 1),)

    def test_workers_lists_every_connection(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f", b"g") as worker:
            worker.send(Kind.SET_CLIENT_ID, b"wk 1")
            worker.settle()
            client.settle()
            peers = admin.parse_workers(ask(server, "workers").splitlines()[:-1])
            found = sorted((peer.client_id, sorted(peer.functions)) for peer in peers)
            assert found == [("-", []), ("-", []), ("wk 1", ["f", "g"])]
            assert {peer.host for peer in peers} == {"127.0.0.1"}

    def test_show_jobs_and_cancel(self, server: Server) -> None:
        with Peer(server) as client, Peer(server, b"f") as worker:
            back, front = client.submit(BG, unique=b"u"), client.submit(unique=b"v")
            jobs = admin.parse_jobs(ask(server, "show jobs").splitlines()[:-1])
            assert {(job.handle.encode(), job.background) for job in jobs} == {(back, True), (front, False)}
            assert sorted(ask(server, "show unique jobs").splitlines()) == [".", "u", "v"]
            assert ask(server, f"cancel job {back.decode()}") == "OK\r\n"
            assert ask(server, "cancel job H:nobody:1") == "ERR UNKNOWN_JOB\r\n"
            assert worker.grab().args[0] == front
            assert worker.grab_nothing()

    def test_the_rest_of_the_commands(self, server: Server) -> None:
        assert ask(server, "version").startswith("OK 1.1.20+")
        assert ask(server, "getpid") == f"OK {server.process.pid}\n"
        assert ask(server, "verbose").startswith("OK ")
        assert ask(server, "maxqueue").startswith("ERR INVALID_ARGUMENTS ")
        assert ask(server, "drop function nobody") == "ERR function not found\r\n"
        assert ask(server, "nonsense").startswith("ERR UNKNOWN_COMMAND ")

    def test_oldest_is_how_to_tell_the_two_apart(self, server: Server) -> None:
        with Peer(server) as client:
            client.submit(BG)
            answer = ask(server, "oldest")
        if self.differs.knows_oldest:
            ((name, age_s),) = [(a.function, a.age_s) for a in admin.parse_oldest(answer.splitlines()[:-1])]
            assert name == "f"
            assert 0 <= age_s < 5
        else:
            assert answer.startswith("ERR UNKNOWN_COMMAND ")
