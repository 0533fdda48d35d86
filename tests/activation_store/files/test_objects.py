"""Object stores: a real server, and a proxy in front of it that makes mistakes."""

from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import pickle
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import zarr

from activation_store.errors import CorruptStoreError, InputError, StoreLockedError
from activation_store.files import lease, requests
from activation_store.files.objects import Bucket
from activation_store.files.storage import Piece, Storage, open_storage
from benchmarks.shared.objects import KEY, POOR_KEY, POOR_SECRET, SECRET, Server, settings
from benchmarks.shared.proxy import Answer, Cut, Delay, Effect, LoseAnswer, LoseRequest, Mistake, Proxy

LOCK = "activations/writer.lock"
CREATED = "activations/journal/created"
FILES = {
    "zarr.json": b'{"attributes": {"probesweep_format": 2}}',
    "sample/zarr.json": b"{}",
    "sample/c/0": b"12345678",
    "activations/zarr.json": b"{}",
    CREATED: b"{}",
}
SLOW = pytest.param(Delay(1.5), marks=pytest.mark.slow)
CONTENT = bytes(range(256)) * 4096


@pytest.fixture(scope="session")
def bucket_address(object_server: Server) -> str:
    return object_server.make_bucket("tests")


@pytest.fixture
def address(bucket_address: str, object_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place where nothing is, with the settings to reach it in the environment."""
    use(monkeypatch, settings(object_server.endpoint))
    return f"{bucket_address}/{secrets.token_hex(8)}/train.zarr"


@pytest.fixture
def storage(address: str) -> Storage:
    return open_storage(address)


@pytest.fixture
def proxy(storage: Storage, object_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between whoever opens a storage after this and the server."""
    with Proxy(object_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr(requests, "REQUEST_SECONDS", 1.0)
        monkeypatch.setattr(requests, "SLOWEST_NBYTES_PER_SECOND", 2**30)
        monkeypatch.setattr(requests, "TRY_SECONDS", 1.0)
        yield proxy


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.25)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 3.0)


def use(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


class TestFiles:
    def test_it_is_what_was_written(self, storage: Storage):
        assert not storage.exists()
        assert storage.names() == []
        storage.create("activations/c/0", [b"123", memoryview(b"45"), b""])
        storage.create("empty", [])
        storage.create("activations/numbers", [memoryview(b"12345678").cast("Q")])
        assert storage.exists()
        assert storage.read("activations/c/0") == b"12345"
        assert storage.read("empty") == b""
        assert storage.read("activations/numbers") == b"12345678"
        assert storage.names() == ["activations/", "empty"]
        assert storage.names("activations") == ["c/", "numbers"]
        assert storage.names("activations/zz") == []
        assert storage.n_bytes("activations/c/0") == 5
        assert storage.n_bytes("activations/c") is None
        assert storage.n_bytes("activations/zz") is None
        assert storage.where("empty") == f"{storage.location}/empty"

    def test_pieces_may_use_the_same_memory(self, storage: Storage):
        def pieces() -> Iterator[memoryview]:
            memory = bytearray(2)
            for number in range(3):
                memory[:] = bytes([number, number])
                yield memoryview(memory)

        storage.create("x", pieces())
        assert storage.read("x") == bytes([0, 0, 1, 1, 2, 2])

    def test_a_fork_does_not_wait_forever(self, storage: Storage):
        storage.create("x", [b"1"])
        receiver, sender = multiprocessing.Pipe(duplex=False)

        def read() -> None:
            try:
                storage.read("x")
            except OSError as error:
                sender.send(str(error))

        process = multiprocessing.get_context("fork").Process(target=read)
        process.start()
        assert receiver.poll(20)
        assert "a process that used an object store was forked" in receiver.recv()
        process.join()

    def test_zarr_reads_it(self, storage: Storage):
        array = zarr.create_array({}, shape=(3,), dtype="int64", fill_value=0)
        array[...] = [1, 2, 3]
        for name, buffer in array.store._store_dict.items():
            storage.create(name, [buffer.to_bytes()])
        assert zarr.open_array(storage.zarr_store(), mode="r")[...].tolist() == [1, 2, 3]

    def test_parts_end_where_the_object_ends(self, storage: Storage):
        storage.create("x", [b"0123456789"])
        contents = storage.open("x")
        parts = [contents.part(start, 4) for start in (0, 8, 10, 99)]
        assert [bytes(part) for part in parts] == [b"0123", b"89", b"", b""]
        assert contents.part(3, 0).nbytes == 0
        assert contents.n_bytes() == 10

    def test_what_is_there_is_not_created_again(self, storage: Storage):
        storage.create("x", [b"1"])
        # Not even the same bytes: their writer was another call.
        for content in (b"1", b"2"):
            with pytest.raises(FileExistsError) as error:
                storage.create("x", [content])
            assert error.value.filename == storage.where("x")
        storage.replace("x", [b"3"])
        assert storage.read("x") == b"3"
        storage.remove("x")
        storage.remove("x")
        storage.claim("x", "process 1")
        with pytest.raises(FileExistsError):
            storage.claim("x", "process 2")

    @pytest.mark.slow
    def test_one_of_many_creates(self, storage: Storage):
        def create(number: int) -> bool:
            try:
                storage.create("x", [str(number).encode()])
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            created = list(pool.map(create, range(4)))
        assert sum(created) == 1
        assert storage.read("x") == str(created.index(True)).encode()

    def test_pieces_are_of_one_content(self, storage: Storage):
        large = CONTENT * 9
        storage.create("x", [large])
        assert storage.read("x") == large
        pieces = storage.pieces("x")
        assert next(pieces) == large[: 8 * 2**20]
        storage.replace("x", [large[::-1]])
        with pytest.raises(OSError, match="was replaced while it was read") as error:
            next(pieces)
        assert error.value.filename == storage.where("x")

    def test_what_is_missing(self, storage: Storage):
        for read in (
            lambda: storage.read("zz"),
            lambda: storage.open("zz").part(0, 1),
            storage.open("zz").n_bytes,
        ):
            with pytest.raises(FileNotFoundError) as error:
                read()
            assert error.value.filename == storage.where("zz")

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//b", ""])
    def test_no_path_leads_out(self, storage: Storage, name: str):
        for act in (storage.read, storage.n_bytes, storage.remove, lambda name: storage.create(name, [b""])):
            with pytest.raises(CorruptStoreError, match="no path below the root"):
                act(name)

    def test_too_much_for_one_request(self, storage: Storage, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(requests, "LARGEST_NBYTES", 10)
        with pytest.raises(OSError, match="11 bytes are more than") as error:
            storage.replace("x", [b"123456", b"12345"])
        assert error.value.errno == errno.EFBIG
        assert not storage.exists()


class TestAddresses:
    @pytest.mark.parametrize(
        "address", ["s3://me:hush@bucket/x", "s3://hush@bucket/x", "s3://bucket/x?key=hush", "s3://bucket/x#hush"]
    )
    def test_nothing_secret_stands_in_them(self, address: str):
        with pytest.raises(InputError, match="credentials belong into the environment") as error:
            open_storage(address)
        assert "hush" not in str(error.value)

    @pytest.mark.parametrize("address", ["s3://", "s3:///x", "s3://bucket/a//b", "az://container/x"])
    def test_useless_ones(self, address: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
        with pytest.raises(InputError, match=re.escape(address)) as error:
            open_storage(address)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("address", "name", "value"),
        [
            ("gs://bucket/x", "GOOGLE_SERVICE_ACCOUNT_KEY", '"hush"'),
            ("gs://bucket/x", "GOOGLE_SERVICE_ACCOUNT_KEY", '{"private_key": "hush", "client_email": "", "a": 1}'),
            ("s3://bucket/x", "AWS_ENDPOINT_URL", "hush"),
            ("s3://bucket/x", "AWS_ENDPOINT_URL", "http://"),
            ("s3://bucket/x", "AWS_ALLOW_HTTP", "hush"),
        ],
    )
    def test_useless_settings(self, address: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"{address} cannot be used") as error:
            open_storage(address)
        assert not re.search(r"hush|\n", str(error.value))

    def test_copies_know_the_address_only(self, storage: Storage):
        storage.create("x", [b"1"])
        for other in (pickle.loads(pickle.dumps(storage)), copy.copy(storage), copy.deepcopy(storage)):
            assert other.location == storage.location
            assert other.read("x") == b"1"
        shown = repr(storage).encode() + pickle.dumps(storage)
        assert KEY.encode() not in shown
        assert SECRET.encode() not in shown

    def test_without_obstore(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(InputError, match=r'pip install "probesweep\[cloud\]"'):
            open_storage("s3://bucket/x")


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "secret", "reason"),
        [
            (POOR_KEY, POOR_SECRET, "the server refuses access"),
            (KEY, "hush", "the secret key is not that of the access key"),
            ("unknown", "hush", "the server does not know the access key"),
        ],
    )
    def test_keys(
        self, address: str, object_server: Server, monkeypatch: pytest.MonkeyPatch, key: str, secret: str, reason: str
    ):
        use(monkeypatch, settings(object_server.endpoint, key, secret))
        storage = open_storage(address)
        acts: list[Callable[[], object]] = [
            storage.exists,
            storage.names,
            lambda: storage.read("x"),
            lambda: storage.create("x", [b""]),
            lambda: storage.remove("x"),
            lambda: storage.acquire(LOCK),
        ]
        for act in acts:
            with pytest.raises(PermissionError, match=reason) as error:
                act()
            assert error.value.filename.startswith(address)
            assert not re.search(rf"{key}|{secret}|\n", str(error.value))
        # A request without a body has an answer without a reason.
        with pytest.raises(PermissionError, match="the server refuses access"):
            storage.n_bytes("x")

    def test_no_credentials(self, address: str, monkeypatch: pytest.MonkeyPatch):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setattr(requests, "FIRST_SECONDS", 0.1)
        with pytest.raises(PermissionError, match="no credentials were found"):
            open_storage(address).read("x")

    def test_a_bucket_that_does_not_exist(self, address: str):
        storage = open_storage("s3://nowhere/x")
        for act in (storage.exists, storage.names, lambda: storage.read("x")):
            with pytest.raises(OSError, match="there is no bucket nowhere") as error:
                act()
            assert not isinstance(error.value, FileNotFoundError)

    def test_a_server_that_does_not_exist(self, address: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(requests, "FIRST_SECONDS", 0.3)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(OSError, match="the object store cannot be reached") as error:
            open_storage(address).exists()
        assert error.value.filename == address

    def test_an_endpoint_without_encryption(self, address: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("AWS_ALLOW_HTTP")
        with pytest.raises(OSError, match="AWS_ALLOW_HTTP=true"):
            open_storage(address).exists()


class TestFaults:
    @pytest.mark.parametrize(
        "effect",
        [
            Answer(500),
            Answer(503, "SlowDown"),
            Cut(1000),
            Cut(1000, declared=False),
            Cut(0, declared=False),
            LoseRequest(),
            LoseAnswer(),
            SLOW,
        ],
        ids=repr,
    )
    def test_reads_are_repeated(self, storage: Storage, proxy: Proxy, effect: Effect, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(requests, "TRY_SECONDS", 5.0)
        monkeypatch.setattr(requests, "FIRST_SECONDS", 5.0)
        storage.create("x", [CONTENT])
        through = open_storage(str(storage.location))
        for read in (lambda: through.open("x").part(7, 70000), lambda: through.read("x")):
            proxy.plan(Mistake("GET", "x$", effect))
            assert bytes(read()) in (CONTENT[7:70007], CONTENT)
            assert proxy.counts["GET"] == 2

    @pytest.mark.parametrize(
        "effect",
        [Answer(500), Answer(409, "ConditionalRequestConflict"), LoseRequest(), LoseAnswer(), SLOW],
        ids=repr,
    )
    def test_writes_are_repeated(self, storage: Storage, proxy: Proxy, effect: Effect, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(requests, "TRY_SECONDS", 5.0)
        monkeypatch.setattr(requests, "FIRST_SECONDS", 5.0)
        through = open_storage(str(storage.location))
        for number, write in enumerate((through.create, through.replace)):
            proxy.plan(Mistake("PUT", f"{number}$", effect))
            write(str(number), [CONTENT, b"more"])
            assert proxy.counts["PUT"] == 2
            assert storage.read(str(number)) == CONTENT + b"more"

    @pytest.mark.parametrize("others", [CONTENT + b"x", CONTENT[:-1] + b"x", b""])
    def test_what_another_wrote_meanwhile_is_not_ours(self, storage: Storage, proxy: Proxy, others: bytes):
        through = open_storage(str(storage.location))
        storage.create("x", [others])
        proxy.plan(Mistake("PUT", "x$", LoseRequest()))
        with pytest.raises(FileExistsError):
            through.create("x", [CONTENT])
        assert storage.read("x") == others

    @pytest.mark.parametrize(
        ("effect", "reason"),
        [
            (Answer(500), "the server answers 500 InternalError"),
            (Answer(503, "SlowDown"), "the server answers 503 SlowDown"),
            (Cut(5, declared=False), "the server's answers are incomplete"),
            (Cut(5), "the connection was lost"),
            (LoseAnswer(), "the connection was lost"),
            pytest.param(Delay(2), "the server did not answer in time", marks=pytest.mark.slow),
        ],
        ids=repr,
    )
    def test_repeating_ends(
        self, storage: Storage, proxy: Proxy, effect: Effect, reason: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(requests, "FIRST_SECONDS", 1.0)
        storage.create("x", [CONTENT])
        through = open_storage(str(storage.location))
        proxy.plan(Mistake("GET", "x$", effect, count=1000))
        begun = time.monotonic()
        with pytest.raises(OSError, match=reason) as error:
            through.open("x").part(0, 100)
        assert time.monotonic() - begun < 4
        assert error.value.filename == storage.where("x")
        assert "\n" not in str(error.value)

    def test_a_refusal_is_not_repeated(self, storage: Storage, proxy: Proxy):
        through = open_storage(str(storage.location))
        proxy.plan(Mistake("GET", "x$", Answer(403, "AccessDenied"), count=1000))
        with pytest.raises(PermissionError):
            through.read("x")
        assert proxy.counts["GET"] == 1

    def test_listing_and_asking_are_repeated(self, storage: Storage, proxy: Proxy):
        storage.create("a/x", [b"1"])
        through = open_storage(str(storage.location))
        proxy.plan(Mistake("GET", "tests$", Answer(503)), Mistake("HEAD", "x$", LoseAnswer()))
        assert through.names("a") == ["x"]
        assert through.n_bytes("a/x") == 1
        assert proxy.counts == {"GET": 2, "HEAD": 2}
        for effect in (Answer(503), Cut(10, declared=False)):
            proxy.plan(Mistake("POST", "tests$", effect), Mistake("GET", "tests$", effect))
            assert through.exists()
            through.remove("a/x")
            assert not storage.exists()
            storage.create("a/x", [b"1"])

    def test_n_bytes_costs_a_request_only_when_asked_for(self, storage: Storage, proxy: Proxy):
        storage.create("x", [CONTENT])
        contents = open_storage(str(storage.location)).open("x")
        proxy.plan()
        contents.part(10, 20)
        assert proxy.counts == {"GET": 1}


HOLDER = """
import sys
from activation_store.errors import StoreLockedError
from activation_store.files import lease
lease.RENEW_SECONDS, lease.LEASE_SECONDS = 0.25, 3.0
from activation_store.files.objects import Bucket
held = Bucket(sys.argv[1]).acquire(sys.argv[2])
print("held", flush=True)
for line in sys.stdin:
    if line == "release\\n":
        held.release()
        break
    try:
        held.check()
        print("fine", flush=True)
    except StoreLockedError as error:
        print(error, flush=True)
"""


@contextmanager
def holder(address: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, address, LOCK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("check\n")
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.usefixtures("short_leases")
class TestLock:
    def test_one_holds_it(self, storage: Storage):
        storage.check_unlocked(LOCK)
        held = storage.acquire(LOCK)
        for ask_again in (storage.acquire, storage.check_unlocked):
            with pytest.raises(StoreLockedError, match=f"is being written by process {os.getpid()} on "):
                ask_again(LOCK)
        held.check()
        held.release()
        assert not storage.exists()
        storage.acquire(LOCK).release()

    @pytest.mark.slow
    def test_of_another_process(self, storage: Storage, address: str):
        with holder(address) as other:
            for ask_for in (storage.acquire, storage.check_unlocked):
                with pytest.raises(StoreLockedError, match=f"process {other.pid} on .*; wait for it or stop it"):
                    ask_for(LOCK)
            assert ask(other) == "fine\n"
            other.kill()
            other.wait()
            begun = time.monotonic()
            storage.check_unlocked(LOCK)
            held = storage.acquire(LOCK)
            assert time.monotonic() - begun < 1
            held.check()
            held.release()

    @pytest.mark.slow
    def test_of_a_process_that_ends_as_it_should(self, storage: Storage, address: str):
        with holder(address) as other:
            other.communicate("release\n", timeout=20)
            assert other.returncode == 0
        assert not storage.exists()

    @pytest.mark.slow
    def test_of_a_machine_that_is_gone(self, storage: Storage, address: str, monkeypatch: pytest.MonkeyPatch):
        with holder(address) as other:
            other.kill()
            other.wait()
            monkeypatch.setattr(lease, "_machine", lambda: "another")
            begun = time.monotonic()
            held = storage.acquire(LOCK)
            assert 3 < time.monotonic() - begun < 6
            held.release()

    @pytest.mark.slow
    def test_of_a_process_that_was_stopped(self, storage: Storage, address: str):
        with holder(address) as other:
            other.send_signal(signal.SIGSTOP)
            held = storage.acquire(LOCK)
            other.send_signal(signal.SIGCONT)
            assert f"was taken over by process {os.getpid()} on" in ask(other)
            other.communicate("release\n", timeout=20)
            # It leaves another's lock alone.
            held.check()
            held.release()

    @pytest.mark.slow
    def test_a_stop_that_nobody_used_is_nothing(self, storage: Storage, address: str):
        with holder(address) as other:
            other.send_signal(signal.SIGSTOP)
            time.sleep(3.5)
            other.send_signal(signal.SIGCONT)
            assert ask(other) == "fine\n"

    def test_of_another_process_with_the_same_number(self, storage: Storage):
        held = storage.acquire(LOCK)
        fields = json.loads(storage.read(LOCK))
        held.release()
        storage.create(LOCK, [json.dumps(fields | {"started": "1"}).encode()])
        begun = time.monotonic()
        storage.acquire(LOCK).release()
        assert time.monotonic() - begun < 1

    @pytest.mark.parametrize("content", [b"\xff[]", b'{"process": "1"}'])
    @pytest.mark.slow
    def test_of_who_knows_whom(self, storage: Storage, content: bytes):
        storage.create(LOCK, [content])
        begun = time.monotonic()
        storage.acquire(LOCK).release()
        assert time.monotonic() - begun > 3

    @pytest.mark.slow
    def test_renewals_whose_answers_are_lost(self, storage: Storage, proxy: Proxy):
        held = open_storage(str(storage.location)).acquire(LOCK)
        proxy.plan(Mistake("PUT", "lock$", LoseAnswer(), count=3))
        time.sleep(1.5)
        held.check()
        held.release()
        assert not storage.exists()

    @pytest.mark.slow
    def test_renewals_that_fail_for_too_long(self, storage: Storage, proxy: Proxy):
        held = open_storage(str(storage.location)).acquire(LOCK)
        proxy.plan(Mistake("PUT", "lock$", Answer(503), count=10**6))
        held.check()
        time.sleep(3.5)
        with pytest.raises(StoreLockedError, match="could not be renewed for 3 s"):
            held.check()
        with pytest.raises(OSError, match="503"):
            held.release()


@pytest.mark.usefixtures("short_leases")
class TestEstablish:
    def test_all_is_there_with_the_last(self, storage: Storage, monkeypatch: pytest.MonkeyPatch):
        before: list[str] = []
        create = Bucket.create

        def spy(self: Bucket, name: str, pieces: object) -> None:
            if name == CREATED:
                before.extend(self._requests.below(100))
            create(self, name, pieces)

        monkeypatch.setattr(Bucket, "create", spy)
        storage.check_vacant()
        held = storage.establish(FILES, CREATED, LOCK)
        assert sorted(before) == sorted({*FILES, LOCK} - {CREATED})
        assert {name: storage.read(name) for name in FILES} == FILES
        held.check()
        with pytest.raises(StoreLockedError, match="is being written by"):
            storage.check_vacant()
        held.release()
        for refuse in (storage.check_vacant, lambda: storage.establish(FILES, CREATED, LOCK)):
            with pytest.raises(InputError, match="another process has created a store here"):
                refuse()

    def test_one_of_two(self, storage: Storage):
        held = storage.acquire(LOCK)
        for refuse in (lambda: storage.check_unlocked(LOCK), lambda: storage.establish(FILES, CREATED, LOCK)):
            with pytest.raises(StoreLockedError, match="is being written by"):
                refuse()
        assert storage.names() == ["activations/"]
        held.release()

    def test_behind_a_bad_line(self, storage: Storage, proxy: Proxy):
        through = open_storage(str(storage.location))
        effects = [LoseAnswer(), Answer(503), LoseRequest(), LoseAnswer(), LoseAnswer(), Answer(500)]
        mistakes = [Mistake("PUT", f"{name}$", effect) for name, effect in zip([LOCK, *FILES], effects, strict=True)]
        proxy.plan(*mistakes, Mistake("GET", "", Cut(10, declared=False)), Mistake("GET", "tests$", Answer(503), 3))
        held = through.establish(FILES, CREATED, LOCK)
        held.check()
        assert {name: storage.read(name) for name in FILES} == FILES
        held.release()
        assert storage.n_bytes(LOCK) is None

    def test_remains_are_written_over(self, storage: Storage, monkeypatch: pytest.MonkeyPatch):
        earlier = {**FILES, "other_label/zarr.json": b"{}", "other_label/c/0": b"1", "sample/c/0": b"other"}

        create = Bucket.create

        def fail(self: Bucket, name: str, pieces: Iterable[Piece]) -> None:
            if name == CREATED:
                raise OSError(errno.EIO, "made to fail", name)
            create(self, name, pieces)

        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "create", fail)
            with pytest.raises(OSError, match="made to fail"):
                storage.establish(earlier, CREATED, LOCK)
        # Its lock is released, too.
        storage.check_vacant()
        storage.establish(FILES, CREATED, LOCK).release()
        # SeaweedFS lists a folder for a while after its last object.
        assert all(storage.n_bytes(name) is None for name in earlier if name not in FILES)
        assert {name: storage.read(name) for name in FILES} == FILES

    @pytest.mark.parametrize(
        "others",
        [
            {"notes.txt": b"mine"},
            {"zarr.json": b'{"attributes": {}}'},
            {"zarr.json": b"[]"},
            {"zarr.json": FILES["zarr.json"], "notes.txt": b"mine"},
            {"activations/zarr.json": b"{}"},
            {"zarr.json": FILES["zarr.json"], "activations/journal": b""},
            {"zarr.json": FILES["zarr.json"], "activations/c/0/0/0/0": b""},
        ],
        ids=lambda others: " ".join(others),
    )
    def test_what_is_not_ours_is_left_alone(self, storage: Storage, others: dict[str, bytes]):
        for name, content in others.items():
            storage.create(name, [content])
        for refuse in (storage.check_vacant, lambda: storage.establish(FILES, CREATED, LOCK)):
            with pytest.raises(InputError, match=re.escape(str(storage.location))):
                refuse()
        assert {name: storage.read(name) for name in others} == others
        assert storage.n_bytes(LOCK) is None
