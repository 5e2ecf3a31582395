"""What our Redis client does when Redis is slow, away, full, forbidding, or behind TLS: one clear error, no repeats."""

from __future__ import annotations

import datetime
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config.celery import celery_options
from config.errors import DrovewayError, HostError, UnreachableError
from config.redis import coordination_client, reaching_redis, server_warnings
from config.settings import RedisSettings, Settings, load_settings
from tests.redis_server import CONFIGURATION, RedisServer
from tests.requirements import missing

ACL = CONFIGURATION.with_name("droveway.acl")
NO_PASSWORD = "0" * 64  # what stands in the shipped file until an operator puts the hash of a password there
PASSWORD_SHA256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # "secret"


def settings_for(url: str, **more: object) -> Settings:
    return load_settings(environment={}, overrides={"redis.url": url, **{f"redis.{k}": v for k, v in more.items()}})


@pytest.fixture
def clients() -> Iterator[Callable[[RedisSettings], redis.Redis]]:
    made = []

    def make(settings: RedisSettings) -> redis.Redis:
        made.append(coordination_client(settings, "droveway-test"))
        return made[-1]

    yield make
    for client in made:
        client.close()


def refusal(kind: type[DrovewayError], settings: RedisSettings, call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught, reaching_redis(settings):
        call()
    return str(caught.value)


# --- on the wire ------------------------------------------------------------------------------------------------------


def test_answers_are_bytes_and_streams_read_the_same_in_every_redis_py(redis_url: str, clients: Callable) -> None:
    client = clients(settings_for(redis_url).redis)
    key = "redis-client-test:stream"
    client.xadd(key, {"blob": b"\xff\x00"}, id="1-0")
    assert client.xread({key: "0"}) == [[key.encode(), [(b"1-0", {b"blob": b"\xff\x00"})]]]
    assert client.client_getname() in (b"droveway-test", "droveway-test")
    assert client.client_info().get("resp", "2") == "2"  # Redis 6 does not say
    client.delete(key)


def test_a_blocking_read_that_finds_nothing_says_nothing(redis_url: str, clients: Callable) -> None:
    client = clients(settings_for(redis_url).redis)
    assert not client.xread({"redis-client-test:nothing": "$"}, block=1)


def test_a_command_whose_answer_is_lost_is_not_sent_again(clients: Callable) -> None:
    """Redis() of redis-py 8 would send it eleven times, and an INCR would count eleven."""
    commands: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while (data := connection.recv(65536)) and b"INCR" not in data:
                    connection.sendall(b"+OK\r\n" * data.count(b"*"))
                commands.append(data)

    server = threading.Thread(target=serve)
    server.start()
    try:
        settings = settings_for(f"redis://:geheim@127.0.0.1:{listener.getsockname()[1]}").redis
        client = clients(settings)
        message = refusal(UnreachableError, settings, lambda: client.incr("x"))
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # ends accept()
        server.join(30)
        listener.close()
    assert len([data for data in commands if b"INCR" in data]) == 1
    assert "geheim" not in message


def test_a_client_finds_back_to_a_restarted_server_at_its_next_call(
    own_redis_server: RedisServer, clients: Callable
) -> None:
    client = clients(settings_for(own_redis_server.url).redis)
    client.set("kept", "x")
    own_redis_server.kill()
    own_redis_server.start()
    assert client.get("kept") == b"x"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_nobody_there(tmp_path: Path, clients: Callable) -> None:
    settings = settings_for(f"unix://:geheim@{tmp_path}/none.sock").redis
    message = refusal(UnreachableError, settings, clients(settings).ping)
    assert re.search(r"Redis at unix://:\*\*\*@.*none.sock cannot be reached .*: check that it runs", message)


def test_a_name_that_does_not_resolve(clients: Callable) -> None:
    settings = settings_for("redis://no-such-host.invalid").redis
    assert "cannot be reached" in refusal(UnreachableError, settings, clients(settings).ping)


def test_a_server_that_does_not_answer(own_redis_server: RedisServer) -> None:
    settings = settings_for(own_redis_server.url).redis
    # The shortest time-out that settings allow is 6 s; a test need not wait for it to see what becomes of it.
    client = coordination_client(settings.model_copy(update={"socket_timeout": 0.2}))
    client.ping()
    own_redis_server.freeze()
    try:
        assert "did not answer in time" in refusal(UnreachableError, settings, client.ping)
    finally:
        own_redis_server.thaw()
        client.close()


def test_a_wrong_password_and_none(own_redis_server: RedisServer, clients: Callable) -> None:
    with own_redis_server.client() as admin:
        admin.config_set("requirepass", "right")
    for url in (own_redis_server.url, f"unix://:geheim@{own_redis_server.socket}"):
        settings = settings_for(url).redis
        message = refusal(UnreachableError, settings, clients(settings).ping)
        assert "does not accept our user or password" in message
        assert "geheim" not in message


def test_a_full_server_is_not_an_unreachable_one(own_redis_server: RedisServer, clients: Callable) -> None:
    settings = settings_for(own_redis_server.url).redis
    client = clients(settings)
    client.config_set("maxmemory", 1)
    assert "raise its maxmemory" in refusal(HostError, settings, lambda: client.set("x", "y"))
    script = client.register_script("return redis.call('SET', KEYS[1], 'y')")
    assert "raise its maxmemory" in refusal(HostError, settings, lambda: script(keys=["x"]))


def test_a_replica(own_redis_server: RedisServer, clients: Callable) -> None:
    settings = settings_for(own_redis_server.url).redis
    client = clients(settings)
    client.replicaof("127.0.0.1", "1")
    assert "point redis.url at the primary" in refusal(HostError, settings, lambda: client.set("x", "y"))


def test_a_primary_without_the_replicas_that_it_must_have(own_redis_server: RedisServer, clients: Callable) -> None:
    settings = settings_for(own_redis_server.url).redis
    client = clients(settings)
    client.config_set("min-replicas-to-write", 1)
    assert "repair its disk or its replicas" in refusal(HostError, settings, lambda: client.set("x", "y"))


def test_a_mistake_of_ours_stays_one(redis_url: str, clients: Callable) -> None:
    settings = settings_for(redis_url).redis
    client = clients(settings)
    with pytest.raises(redis.exceptions.ResponseError, match="unknown command"), reaching_redis(settings):
        client.execute_command("NONSENSE")


def test_it_decorates_a_function_too(tmp_path: Path, clients: Callable) -> None:
    settings = settings_for(f"unix://{tmp_path}/none.sock").redis

    @reaching_redis(settings)
    def ask() -> object:
        return clients(settings).ping()

    for _ in range(2):
        with pytest.raises(UnreachableError):
            ask()


# --- the shipped configuration ----------------------------------------------------------------------------------------


def test_the_shipped_configuration_keeps_its_promises(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        options = client.config_get("*")
        assert options["appendonly"] == "yes"
        assert options["appendfsync"] == "always"
        assert options["maxmemory-policy"] == "noeviction"
        assert options["save"] == ""
        assert server_warnings(client.info()) == []


def test_a_server_that_forgets_or_evicts_is_warned_of(own_redis_server: RedisServer) -> None:
    with own_redis_server.client() as client:
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
        warnings = server_warnings(client.info() | {"redis_version": "6.0.9"})
    assert [word for word in ("6.0.9", "appendonly", "maxmemory-policy") if word not in " ".join(warnings)] == []
    assert len(warnings) == 3


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A server under the shipped ACL, with a password filled in."""
    rules = ACL.read_text()
    assert NO_PASSWORD in rules
    file = tmp_path / "droveway.acl"
    file.write_text(rules.replace(NO_PASSWORD, PASSWORD_SHA256))
    server = RedisServer("--aclfile", str(file))
    try:
        server.start()
        yield server
    finally:
        server.close()


def test_the_shipped_acl_lets_a_worker_work_and_nothing_else(guarded: RedisServer, clients: Callable) -> None:
    settings = settings_for(f"unix://droveway:secret@{guarded.socket}")
    app = Celery("test", set_as_current=False)
    app.conf.update(celery_options(settings))
    done = threading.Event()

    @app.task(name="test.done", shared=False)
    def finish() -> None:
        done.set()

    with start_worker(app, pool=app.conf.worker_pool, queues=["droveway.source.a"], perform_ping_check=False):
        finish.apply_async(queue="droveway.source.a")
        assert done.wait(60)
        assert app.control.ping(timeout=30, limit=1)
    app.close()

    client = clients(settings.redis)
    client.register_script("redis.call('TIME') return redis.call('XADD', KEYS[1], '1-0', 'a', 'b')")(
        keys=["droveway:s"]
    )
    assert client.xread({"droveway:s": "0"}, block=1)
    assert client.info()
    for call in (
        lambda: client.get("other"),
        client.flushall,
        client.shutdown,
        lambda: client.config_set("save", "1 1"),
    ):
        assert "ops/redis/droveway.acl" in refusal(HostError, settings.redis, call)


def test_nobody_gets_in_before_an_operator_sets_a_password(tmp_path: Path, clients: Callable) -> None:
    file = tmp_path / "droveway.acl"
    file.write_text(ACL.read_text())
    server = RedisServer("--aclfile", str(file))
    try:
        server.start()
        for user in ("droveway", "default"):
            settings = settings_for(f"unix://{user}:{NO_PASSWORD}@{server.socket}").redis
            assert "does not accept" in refusal(UnreachableError, settings, clients(settings).ping)
    finally:
        server.close()


# --- TLS --------------------------------------------------------------------------------------------------------------


def issue(directory: Path, name: str, ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None):
    """A certificate for `name` and its key, signed by `ca` or by itself; they also lie in NAME.crt and NAME.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=ca[0].subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(addresses if name == "server" else [x509.DNSName(name)]), critical=False
        )
        .sign(ca[1] if ca else key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    (directory / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return certificate, key


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that wants TLS with client certificates from the CA in `tmp_path`."""
    ca = issue(tmp_path, "ca")
    for name in ("server", "client", "stranger"):
        issue(tmp_path, name, ca)
    issue(tmp_path, "other-ca")
    port = str(free_port())
    files = ["--tls-cert-file", "server.crt", "--tls-key-file", "server.key", "--tls-ca-cert-file", "ca.crt"]
    absolute = [str(tmp_path / word) if "." in word else word for word in files]
    server = RedisServer("--tls-port", port, *absolute, "--tls-auth-clients", "yes")
    try:
        server.start()
    except RuntimeError as error:
        server.close()
        if "TLS" not in str(error) and "tls-port" not in str(error):
            raise
        missing("this Redis server was built without TLS")
    try:
        yield f"rediss://127.0.0.1:{port}/0"
    finally:
        server.close()


def test_both_clients_speak_mutual_tls(encrypted: str, tmp_path: Path, clients: Callable) -> None:
    files = {"ca": tmp_path / "ca.crt", "certificate": tmp_path / "client.crt", "key": tmp_path / "client.key"}
    settings = settings_for(encrypted, **files)
    assert clients(settings.redis).ping()
    app = Celery("test", set_as_current=False)
    app.conf.update(celery_options(settings))
    app.send_task("test.nothing", queue="droveway.source.a")
    assert clients(settings.redis).llen("droveway:droveway.source.a") == 1
    app.close()


def test_neither_client_trusts_a_server_that_its_ca_did_not_sign(
    encrypted: str, tmp_path: Path, clients: Callable
) -> None:
    files = {"ca": tmp_path / "other-ca.crt", "certificate": tmp_path / "client.crt", "key": tmp_path / "client.key"}
    settings = settings_for(encrypted, **files)
    message = refusal(UnreachableError, settings.redis, clients(settings.redis).ping)
    assert "certificate verify failed" in message
    app = Celery("test", set_as_current=False)
    app.conf.update(celery_options(settings))
    with pytest.raises(Exception, match="certificate verify failed"):
        app.send_task("test.nothing", queue="droveway.source.a")
    app.close()


def test_a_client_without_a_certificate_is_not_let_in(encrypted: str, tmp_path: Path, clients: Callable) -> None:
    settings = settings_for(encrypted, ca=tmp_path / "ca.crt")
    assert "cannot be reached" in refusal(UnreachableError, settings.redis, clients(settings.redis).ping)
