"""Several processes against one: the same vectors in the same order, and an end that is told in one line."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbretrieve.errors import ModelError
from mbretrieve.models import load_encoder, workers
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.workers import EncoderPool
from mbretrieve.types import Encoder, Kind
from tests.models import small

# More characters than a batch of 64 tokens has, of very different lengths, one of them empty.
TEXTS = [text[: 7 * number % 311] for number in range(20) for text in small.TEXTS]
FEW = {"batch_tokens": 64}
KINDS: tuple[Kind, ...] = ("colbert", "dense", "joint")


def made(folder: Path) -> Path:
    return small.pylate(folder, do_query_expansion=False)


def load(kind: Kind, folder: Path, device: str = "cpu,cpu") -> Any:
    return load_encoder(kind, folder, device=device, dtype="float32")


def arrays(kind: Kind, vectors: Any) -> list[np.ndarray]:
    return [array for both in vectors for array in (both.tokens, both.pooled)] if kind == "joint" else list(vectors)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[EncoderPool]:
    with load("colbert", made(tmp_path / "model")) as pool:
        yield pool


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_does(tmp_path: Path, kind: Kind) -> None:
    folder = made(tmp_path / "model")
    one = load(kind, folder, "cpu")
    finished: list[int] = []
    with load(kind, folder) as two:
        assert isinstance(two, Encoder)
        found = two.encode_documents(TEXTS, progress=finished.append, **FEW)
        assert len(two._workers) == 2
        wanted = one.encode_documents(TEXTS, **FEW)
        assert type(found) is type(wanted)
        small.assert_same_rows(arrays(kind, found), arrays(kind, wanted), tolerance=1e-5)
        assert sum(finished) == len(found) == len(TEXTS)
        again = two.encode_documents(TEXTS, **FEW)
        assert all((a == b).all() for a, b in zip(arrays(kind, found), arrays(kind, again), strict=True))
        small.assert_same_rows(
            arrays(kind, two.encode_queries(TEXTS[:9])), arrays(kind, one.encode_queries(TEXTS[:9])), tolerance=1e-6
        )
    assert (two.identity, two.document_capacity) == (one.identity, one.document_capacity)


def test_options_reach_the_processes(pool: EncoderPool) -> None:
    pooled = pool.encode_documents(TEXTS, pool_factor=2, **FEW)
    assert pool._workers
    wanted = pool._model.encode_documents(TEXTS, pool_factor=2, **FEW)
    assert sum(map(len, wanted)) < 0.6 * sum(map(len, pool._model.encode_documents(TEXTS, **FEW)))
    small.assert_same_rows(pooled, wanted, tolerance=1e-5)


def test_what_is_no_more_than_a_batch_needs_no_process(pool: EncoderPool) -> None:
    assert len(pool.encode_documents(small.TEXTS)) == len(small.TEXTS)
    assert pool.encode_documents([]) == []
    assert not pool._workers
    with pytest.raises(TypeError, match="a list of texts"):
        pool.encode_documents("a text")
    with pytest.raises(ValueError, match="batch_tokens is 0, expected at least 1"):
        pool.encode_documents(TEXTS, batch_tokens=0)


def test_what_lies_in_the_working_folder_is_not_imported(
    pool: EncoderPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "json.py").write_text("raise SystemExit('of the project')")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    assert len(pool.encode_documents(TEXTS, **FEW)) == len(TEXTS)


def test_a_process_has_its_next_texts_while_it_computes(pool: EncoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered, most = Counter[Any](), Counter[Any](), Counter[Any]()
    ask, answer = workers._Worker.ask, workers._Worker.answer

    def note_ask(self: Any, request: Any) -> None:
        ask(self, request)
        asked[self] += 1
        most[self] = max(most[self], asked[self] - answered[self])

    def note_answer(self: Any) -> Any:
        found = answer(self)
        answered[self] += 1
        return found

    monkeypatch.setattr(workers._Worker, "ask", note_ask)
    monkeypatch.setattr(workers._Worker, "answer", note_answer)
    found = pool.encode_documents(TEXTS * 4, **FEW)
    assert [most[worker] for worker in pool._workers] == [2, 2]
    assert asked == answered
    small.assert_same_rows(found, pool._model.encode_documents(TEXTS, **FEW) * 4, tolerance=1e-5)


def test_one_device_of_a_list_is_one(tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    assert isinstance(load("colbert", folder, "cpu,"), ColBERT)
    with pytest.raises(ModelError, match=r"device is 'cpu,cpu': .*mbretrieve.load_encoder"):
        ColBERT.from_pretrained(folder, device="cpu,cpu")
    with pytest.raises(ModelError, match=r"dtype is int4, expected one of float32, .*, int8"):
        ColBERT.from_pretrained(folder, device="cpu", dtype="int4")


def test_two_threads_get_each_their_own(pool: EncoderPool) -> None:
    pool.encode_documents(TEXTS, **FEW)
    asked = [TEXTS, TEXTS[::-1]] * 2
    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(lambda texts: pool.encode_documents(texts, **FEW), asked, timeout=100))
    for texts, rows in zip(asked, found, strict=True):
        small.assert_same_rows(rows, pool._model.encode_documents(texts, **FEW), tolerance=1e-5)


def test_a_process_that_is_killed_is_named(pool: EncoderPool) -> None:
    pool.encode_documents(TEXTS, **FEW)
    first, second = pool._workers
    os.kill(second._process.pid, signal.SIGKILL)
    with pytest.raises(ModelError) as caught:
        pool.encode_documents(TEXTS, **FEW)
    said = str(caught.value)
    assert f"worker 2 of 2 (cpu), process {second._process.pid}, was ended by SIGKILL" in said
    assert "\n" not in said
    assert first._process.poll() is not None, "the others are ended, too"
    assert len(pool.encode_documents(TEXTS, **FEW)) == len(TEXTS), "the next documents start others"


def test_a_process_that_is_killed_at_work_is_no_hang(pool: EncoderPool) -> None:
    pool.encode_documents(TEXTS, **FEW)
    victim = pool._workers[0]._process.pid
    steps: list[int] = []

    def kill(count: int) -> None:
        if not steps:
            os.kill(victim, signal.SIGKILL)
        steps.append(count)

    with pytest.raises(ModelError, match=r"worker 1 of 2 \(cpu\), process \d+, was ended by SIGKILL"):
        pool.encode_documents(TEXTS * 40, progress=kill, **FEW)


def test_a_model_that_is_gone_is_one_line(pool: EncoderPool, tmp_path: Path) -> None:
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"worker 1 of 2 \(cpu\): .*there is no folder"):
        pool.encode_documents(TEXTS, **FEW)
    assert not pool._workers


def test_a_bug_keeps_its_traceback(pool: EncoderPool) -> None:
    with pytest.raises(RuntimeError, match="Traceback"):
        pool.encode_documents(TEXTS, unknown=1, **FEW)


def test_a_pool_that_nobody_holds_ends_its_processes(tmp_path: Path) -> None:
    pool = load("colbert", made(tmp_path / "model"))
    pool.encode_documents(TEXTS, **FEW)
    processes = [worker._process for worker in pool._workers]
    del pool
    assert [process.poll() for process in processes] == [-signal.SIGKILL] * 2


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
from mbretrieve.models import load_encoder
pool = load_encoder("colbert", sys.argv[1], device="cpu,cpu", dtype="float32")
def note(count):
    print(*(worker._process.pid for worker in pool._workers), flush=True)
pool.encode_documents(["some words of a text " * 8] * 20000, batch_tokens=64, progress=note)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_who_started_it(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(made(tmp_path / "model"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == -number
    assert said.count("Traceback") == (number == signal.SIGINT), said
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and _runs(pid) for pid in workers):
        assert time.monotonic() < until, "a process goes on though nobody waits for it"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


THREADS = """
import os, sys
from pathlib import Path
from mbretrieve import cores
cores._ROOT = Path(sys.argv[2])
os.sched_getaffinity = lambda _: {0, 1, 2, 3}
import torch
torch.set_num_threads(4)
from mbretrieve.models.workers import _load
_load({"kind": "colbert", "name": sys.argv[1], "device": "cpu", "dtype": "float32"}, int(sys.argv[3]))
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("quota", "sharing", "told", "threads"), [(3, 1, "", 3), (3, 2, "", 1), (9, 2, "", 2), (3, 1, "2", 4)]
)
def test_processes_share_what_the_quota_pays_for(
    tmp_path: Path, quota: int, sharing: int, told: str, threads: int
) -> None:
    for name, text in {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{quota}00000 100000"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": told} if told else {}
    command = [sys.executable, "-c", THREADS, str(made(tmp_path / "model")), str(tmp_path), str(sharing)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(threads)]
