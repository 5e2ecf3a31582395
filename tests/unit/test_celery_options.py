"""The options work on a real worker and a real Redis, not only in a dictionary."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import kombu
import pytest
import redis
from celery import Celery
from celery.app.defaults import NAMESPACES, flatten
from celery.contrib.testing.worker import start_worker
from celery.exceptions import CPendingDeprecationWarning

from config.celery import CONTROL_QUEUE, VISIBILITY_TIMEOUT, broker_url, celery_options, reaching_broker
from config.errors import UnreachableError
from config.settings import RedisSettings, Settings, load_settings
from tests.redis_server import RedisServer


def settings_for(url: str, **more: str) -> Settings:
    return load_settings(environment={}, overrides={"redis.url": url, **{f"redis.{k}": v for k, v in more.items()}})


def app_for(settings: Settings) -> Celery:
    app = Celery("test", set_as_current=False)
    app.conf.update(celery_options(settings))
    return app


class Calls:
    """A task that notes its runs and can be held."""

    def __init__(self, app: Celery) -> None:
        self.seen: list[str] = []
        self.changed = threading.Condition()
        self.release = threading.Event()

        @app.task(name="test.note", shared=False)
        def note(word: str, hold: bool = False) -> str:
            with self.changed:
                self.seen.append(word)
                self.changed.notify_all()
            if hold:
                assert self.release.wait(60)
            return word

        self.task = note

    def wait_for(self, count: int) -> list[str]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.seen) >= count, timeout=60)
            return list(self.seen)


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    app = app_for(settings_for(redis_url, prefix="celery-options:"))
    yield app
    app.close()


def test_every_option_is_one_that_celery_knows() -> None:
    known = {name for name, _ in flatten(NAMESPACES)}
    assert set(celery_options(load_settings(environment={}))) <= known


def test_every_transport_option_is_one_that_kombu_reads() -> None:
    from kombu.transport.redis import Channel

    options = celery_options(load_settings(environment={}))["broker_transport_options"]
    assert set(options) <= set(Channel.from_transport_options)


def test_a_task_on_a_host_queue_runs_once_and_leaves_no_result(app: Celery, redis_server: RedisServer) -> None:
    calls = Calls(app)
    with start_worker(app, pool=app.conf.worker_pool, queues=["droveway.source.a"], perform_ping_check=False) as worker:
        assert worker.pool_cls.__module__ == "celery.concurrency.thread"
        calls.task.apply_async(("hello",), queue="droveway.source.a")
        assert calls.wait_for(1) == ["hello"]
    with redis_server.client() as client:
        keys = {key.decode() for key in client.scan_iter("*celery-options*")}
        assert not [key for key in keys if "celery-task-meta" in key]
        assert all(key.startswith("celery-options:") for key in keys)


def test_a_message_waits_for_a_free_thread_in_its_queue_not_in_the_worker(
    app: Celery, redis_server: RedisServer
) -> None:
    """Reserved behind a long task it would be delivered again elsewhere after the visibility time-out."""
    calls = Calls(app)
    queue = "droveway.source.b"
    with start_worker(app, pool=app.conf.worker_pool, concurrency=1, queues=[queue], perform_ping_check=False):
        try:
            calls.task.apply_async(("first",), {"hold": True}, queue=queue)
            calls.wait_for(1)
            for word in ("second", "third"):
                calls.task.apply_async((word,), queue=queue)
            for _ in range(2):  # once it has answered, the worker has also had its turn at fetching
                assert app.control.ping(timeout=30, limit=1)
            with redis_server.client() as client:
                waiting = [json.loads(message) for message in client.lrange(f"celery-options:{queue}", 0, -1)]
                assert len(waiting) == 2
                # Early acknowledgement: a running task is not waiting to be delivered again.
                assert client.zcard("celery-options:unacked_index") == 0
        finally:
            calls.release.set()
        assert sorted(calls.wait_for(3)) == ["first", "second", "third"]


def test_a_pickled_message_is_refused_unread(app: Celery) -> None:
    calls = Calls(app)
    queue = "droveway.source.c"
    with start_worker(app, pool=app.conf.worker_pool, queues=[queue], perform_ping_check=False):
        with app.connection_for_write() as connection:
            kombu.enable_insecure_serializers(["pickle"])
            try:
                headers = {"task": "test.note", "id": "1"}
                producer = connection.Producer(serializer="pickle")
                producer.publish((("evil",), {}, {}), routing_key=queue, exchange="", headers=headers)
            finally:
                kombu.disable_insecure_serializers()
        calls.task.apply_async(("good",), queue=queue)
        assert calls.wait_for(1) == ["good"]


def test_a_worker_outlives_its_broker(own_redis_server: RedisServer) -> None:
    app = app_for(settings_for(own_redis_server.url))
    calls = Calls(app)
    with start_worker(app, pool=app.conf.worker_pool, queues=["q"], perform_ping_check=False):
        # Celery warns of a default of Celery 6 that we set ourselves, whatever the filters were at its start.
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
        calls.task.apply_async(("before",), queue="q")
        calls.wait_for(1)
        own_redis_server.kill()
        own_redis_server.start()
        calls.task.apply_async(("after",), queue="q")
        # The broker may have died before it heard that the first was done; then that one comes twice.
        with calls.changed:
            assert calls.changed.wait_for(lambda: "after" in calls.seen, timeout=60)
    app.close()


def test_a_producer_without_a_broker_is_told_so_and_does_not_hang(tmp_path: Path) -> None:
    settings = settings_for(f"unix://:geheim@{tmp_path}/nobody.sock")
    app = app_for(settings)
    calls = Calls(app)
    with (
        pytest.raises(UnreachableError, match=r"nobody.sock.* check that it runs") as caught,
        reaching_broker(settings.redis),
    ):
        calls.task.apply_async(("lost",), queue="q")
    assert "geheim" not in str(caught.value)
    app.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:pw@h:1/2", "redis://:pw@h:1/2"),
        ("rediss://h/2", "rediss://h/2"),
        ("unix:///run/r.sock", "redis+socket:///run/r.sock?virtual_host=0"),
        ("unix://u:p%40w@/run/r.sock?db=3", "redis+socket://u:p%40w@/run/r.sock?virtual_host=3"),
    ],
)
def test_a_unix_socket_is_named_as_kombu_wants_it(url: str, expected: str) -> None:
    assert broker_url(RedisSettings(url=url)) == expected


def test_password_and_database_of_a_unix_socket_reach_the_server(own_redis_server: RedisServer) -> None:
    with own_redis_server.client() as client:
        client.config_set("requirepass", "ge heim")
    app = app_for(settings_for(f"unix://:ge%20heim@{own_redis_server.socket}?db=3"))
    Calls(app).task.apply_async(("hello",), queue="q")
    with redis.Redis(unix_socket_path=str(own_redis_server.socket), password="ge heim", db=3) as client:
        assert client.llen("droveway:q") == 1
    app.close()


def test_tasks_without_a_queue_of_their_own_go_to_the_control_queue(app: Celery, redis_server: RedisServer) -> None:
    Calls(app).task.apply_async(("hello",))
    with redis_server.client() as client:
        assert client.llen(f"celery-options:{CONTROL_QUEUE}") == 1


def test_a_redelivery_time_out_is_longer_than_any_sensible_countdown() -> None:
    options = celery_options(load_settings(environment={}))
    assert options["broker_transport_options"]["visibility_timeout"] == VISIBILITY_TIMEOUT >= 3600


def test_there_is_a_thread_for_every_slot() -> None:
    settings = load_settings(environment={}, overrides={"host.outbound_slots": 3, "host.inbound_slots": 2})
    assert celery_options(settings)["worker_concurrency"] >= 5
