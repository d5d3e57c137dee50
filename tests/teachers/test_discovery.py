"""Finding a server by the page its job keeps: waiting, moving with it, and saying in a sentence why there is none."""

import socket
import threading

import pytest

from harness.config.checks import SettingsError
from harness.execution.attempt import failure_class
from harness.runtime import preemption
from harness.teachers import discovery
from harness.teachers.discovery import DiscoveredEndpoint, endpoint_at, write_address
from tests.fake_server import FakeServer

ABOUT = {"name": "g.serve.3f2a10.0", "job": "12", "model": "tiny"}


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(discovery, "LOOK_SECONDS", 0.02)
    return tmp_path / "servers" / "serve-1.json"


def say(page, ready_minutes=1, **more):
    write_address(page, **ABOUT, ready_minutes=ready_minutes, **more)


def nobody():
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_server_that_is_not_there_yet_is_waited_for(page):
    with FakeServer(None) as fake:
        say(page, url=nobody())  # as a node left it that lost its power
        threading.Timer(0.1, say, [page]).start()
        threading.Timer(0.2, lambda: say(page, url=fake.url)).start()
        endpoint = endpoint_at(str(page))
        assert endpoint.url == fake.url and endpoint.request("/v1/models")["data"][0]["id"] == "tiny"


def test_a_server_that_was_started_anew_elsewhere_is_found_again(page):
    with FakeServer(None) as before, FakeServer(None) as after:
        say(page, url=before.url)
        endpoint = DiscoveredEndpoint(page, attempts=2, first_wait_s=0.0)
        before.__exit__()
        say(page)
        threading.Timer(0.2, lambda: say(page, url=after.url)).start()
        found = []
        threads = [threading.Thread(target=lambda: found.append(endpoint.request("/v1/models"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4 and endpoint.url == after.url


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (None, "the job that serves it has ended"),
        ({"failed": "slurm.serve.command='x' cannot be run: no kernel image."}, r"job 12 failed: .*no kernel image;"),
        ({"ready_minutes": -1}, "job 12 did not answer within 0 minutes"),
    ],
)
def test_no_server_is_a_failure_of_its_own_class_that_names_the_job(page, said, words):
    if said is not None:
        say(page, **said)
    with pytest.raises(SettingsError, match=words) as refusal:
        endpoint_at(str(page))
    assert failure_class(refusal.value) == "server" and "retry" in str(refusal.value)


def test_a_server_that_is_there_and_fails_is_not_waited_for(page):
    with FakeServer(None) as fake:
        say(page, url=fake.url)
        endpoint = DiscoveredEndpoint(page, attempts=2, first_wait_s=0.0)
        fake.faults = [500, 500]
        with pytest.raises(SettingsError, match=r"does not answer \(500 fault"):
            endpoint.request("/v1/completions", {"prompt": [1]})


def test_a_stage_that_waits_for_a_server_stops_when_it_is_asked_to(page, monkeypatch):
    say(page)
    monkeypatch.setattr(preemption, "_asked", True)
    with pytest.raises(preemption.Preempted):
        endpoint_at(str(page))


def test_without_a_cluster_there_is_nothing_to_find():
    with pytest.raises(SettingsError, match=r"teacher\.path='slurm' .*slurm=<cluster>"):
        endpoint_at("slurm")
