"""Finding a server by its address file: waiting for it, following it elsewhere, and the reason why there is none."""

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
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(discovery, "LOOK_SECONDS", 0.02)
    return tmp_path / "servers" / "serve-1.json"


def write(file, ready_minutes=1, **more):
    write_address(file, **ABOUT, ready_minutes=ready_minutes, **more)


def unused_address():
    """An address where no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_server_that_is_not_there_yet_is_waited_for(file):
    with FakeServer(None) as fake:
        write(file, url=unused_address())  # the state that a node without power leaves
        threading.Timer(0.1, write, [file]).start()
        threading.Timer(0.2, lambda: write(file, url=fake.url)).start()
        endpoint = endpoint_at(str(file))
        assert endpoint.url == fake.url and endpoint.request("/v1/models")["data"][0]["id"] == "tiny"


def test_a_server_that_was_started_anew_elsewhere_is_found_again(file):
    with FakeServer(None) as before, FakeServer(None) as after:
        write(file, url=before.url)
        endpoint = DiscoveredEndpoint(file, attempts=2, first_wait_s=0.0)
        before.__exit__()
        write(file)
        threading.Timer(0.2, lambda: write(file, url=after.url)).start()
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
def test_no_server_is_a_failure_of_its_own_class_that_names_the_job(file, said, words):
    if said is not None:
        write(file, **said)
    with pytest.raises(SettingsError, match=words) as refusal:
        endpoint_at(str(file))
    assert failure_class(refusal.value) == "server" and "retry" in str(refusal.value)


def test_a_server_that_is_there_and_fails_is_not_waited_for(file):
    with FakeServer(None) as fake:
        write(file, url=fake.url)
        endpoint = DiscoveredEndpoint(file, attempts=2, first_wait_s=0.0)
        fake.faults = [500, 500]
        with pytest.raises(SettingsError, match=r"does not answer \(500 fault"):
            endpoint.request("/v1/completions", {"prompt": [1]})


def test_a_stage_that_waits_for_a_server_stops_when_it_is_asked_to(file, monkeypatch):
    write(file)
    monkeypatch.setattr(preemption, "_stop_requested", True)
    with pytest.raises(preemption.Preempted):
        endpoint_at(str(file))


def test_without_a_cluster_there_is_nothing_to_find():
    with pytest.raises(SettingsError, match=r"teacher\.path='slurm' .*slurm=<cluster>"):
        endpoint_at("slurm")
