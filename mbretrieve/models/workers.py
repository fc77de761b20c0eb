"""Several devices: a process each encodes a part of the documents, which come back in their order.

A process is ``python -m mbretrieve.models.workers``. Over its pipes go lines of JSON and, behind them, float32 arrays
as they lie in memory; it ends when whoever started it closes its end, or is gone.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mbretrieve.cores import told_environment, usable_cores
from mbretrieve.errors import MbretrieveError, MbretrieveWarning, ModelError
from mbretrieve.models.packing import pack
from mbretrieve.types import FloatArray, JointVectors, Kind, ModelIdentity

if TYPE_CHECKING:
    from mbretrieve.models.encoder import Progress, TextEncoder

_CHARACTERS = 4  # a token, about: how much work a text is, is known before it is tokenized
_BATCHES = 8  # of so many a portion is made at most: what a process is given at a time, and what is lost of it at worst
_PORTIONS = 8  # for each process, so that none waits long for the last one
_IN_FLIGHT = 2  # portions that a process has: it computes one while the answer before crosses the pipe
_PATIENCE = 10.0  # seconds that a process has to end by itself


def devices(names: Any) -> list[str]:
    """Read what a caller named as the device: several are parted by commas."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else []


def first_device(names: str | None) -> str | None:
    """Return the first device of those that a caller named, for what runs on one; None if none is named."""
    return next(iter(devices(names)), None)


class EncoderPool:
    """An encoder (``types.Encoder``) that has documents encoded by a process for each of several devices.

    The processes start with the first documents that are more than a batch. Everything else is done here, by the model
    on the first device, whose other attributes this has, too. ``close`` it, or use ``with``.
    """

    def __init__(self, model: "TextEncoder", names: Sequence[str], loading: Mapping[str, Any]) -> None:
        """Take the model as it was loaded on the first device, and by what names and options ``load_encoder`` loads
        it."""
        self._model, self._names = model, list(names)
        # A dtype may be torch's own; over the pipe goes its name.
        dtype = loading.get("dtype")
        self._loading = dict(loading) | {"dtype": None if dtype is None else str(dtype).removeprefix("torch.")}
        self._workers: list[_Worker] = []
        self._said: set[str] = set()
        self._one = threading.Lock()  # a process answers in the order in which it is asked: one caller at a time

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def kind(self) -> Kind:
        """The model's."""
        return self._model.kind

    @property
    def identity(self) -> ModelIdentity:
        """The model's."""
        return self._model.identity

    @property
    def document_capacity(self) -> int:
        """The model's."""
        return self._model.document_capacity

    def token_offsets(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The model's."""
        return self._model.token_offsets(texts)

    def encode_queries(self, texts: Sequence[str], **options: Any) -> Any:
        """The model's."""
        return self._model.encode_queries(texts, **options)

    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:
        """The model's."""
        return self._model.line_scores(query, texts)

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        batch_tokens: int | None = None,
        progress: "Progress | None" = None,
        **options: Any,
    ) -> Any:
        """Encode documents as the model does, on all devices; what is no more than a batch, here.

        Raises: ModelError naming the process that died or could not load the model; what the model raises.
        """
        from mbretrieve.models.encoder import BATCH_TOKENS

        batch = BATCH_TOKENS if batch_tokens is None else batch_tokens
        sizes = [max(1, len(text)) for text in texts]
        if isinstance(texts, str) or batch < 1 or sum(sizes) <= batch * _CHARACTERS:
            return self._model.encode_documents(texts, batch_tokens=batch, progress=progress, **options)
        share = sum(sizes) // (_PORTIONS * len(self._names))
        portions = pack(sizes, min(max(share, batch * _CHARACTERS), _BATCHES * batch * _CHARACTERS))
        with self._one:
            out = self._on_all(texts, portions, options | {"batch_tokens": batch}, progress)
        return np.stack(out) if self.kind == "dense" else out

    def close(self) -> None:
        """End the processes; the next documents start others."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()

    def _on_all(
        self,
        texts: Sequence[str],
        portions: Sequence[Sequence[int]],
        options: Mapping[str, Any],
        progress: "Progress | None",
    ) -> list[Any]:
        """Have the processes encode documents, given as portions of their places: what the encoder gives for each."""
        idle: SimpleQueue[_Worker] = SimpleQueue()
        out: list[Any] = [None] * len(texts)
        try:
            for worker in self._started() * _IN_FLIGHT:
                idle.put(worker)

            def encoded(places: Sequence[int]) -> list[Any]:
                worker = idle.get()
                try:
                    return worker.encode([texts[place] for place in places], options)
                finally:
                    idle.put(worker)

            with ThreadPoolExecutor(_IN_FLIGHT * len(self._names), thread_name_prefix="devices") as threads:
                try:
                    for places, rows in zip(portions, threads.map(encoded, portions), strict=True):
                        for place, row in zip(places, rows, strict=True):
                            out[place] = row
                        if progress is not None:
                            progress(len(places))
                except BaseException:
                    self.close()  # before the threads are waited for: each waits for its process
                    raise
        except BaseException:
            self.close()
            raise
        return out

    def _started(self) -> list["_Worker"]:
        if not self._workers:
            count = len(self._names)
            for number, name in enumerate(self._names, 1):
                self._workers.append(_Worker(f"worker {number} of {count} ({name})", self._said))
            for worker, name in zip(self._workers, self._names, strict=True):  # all load at the same time
                worker.ask({"loading": self._loading | {"device": name}, "sharing": self._names.count(name)})
            for worker in self._workers:
                worker.answer()
        return self._workers


class _Worker:
    """A process, as who started it sees it."""

    def __init__(self, name: str, said: set[str]) -> None:
        """``said`` are the warnings that were passed on, by whichever process."""
        self._name, self._said = name, said
        self._asking, self._answering = threading.Lock(), threading.Lock()
        # In a session of its own: Ctrl-C at a terminal is for who started it, who ends it. It imports from where this
        # process does: -m alone would look in the working folder first, where an indexed project's json.py may lie.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=told_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.end = weakref.finalize(self, _end, self._process)

    def encode(self, texts: Sequence[str], options: Mapping[str, Any]) -> list[Any]:
        """Encode documents: what the encoder gives for each text. Of two callers the second's texts are there when the
        first's are done; a third waits."""
        with self._asking:
            self.ask({"texts": list(texts), "options": dict(options)})
            # Before the next may ask: answers come in the order of the requests.
            self._answering.acquire()
        try:
            answer = self.answer()
        finally:
            self._answering.release()
        return _by_text(*answer)

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send a request. Raises: ModelError if nobody reads it."""
        assert self._process.stdin is not None
        try:
            _send(self._process.stdin, request)
        except (BrokenPipeError, ValueError):  # ValueError: it was closed
            raise self._death() from None

    def answer(self) -> tuple[Kind, list[FloatArray]]:
        """Read the answer. Raises: ModelError as it says, or if there is none; RuntimeError for a bug, with its
        traceback."""
        assert self._process.stdout is not None
        try:
            message = _receive(self._process.stdout)
        except ValueError:
            message = None
        if message is None:
            raise self._death()
        for text in message.told["said"]:
            if text not in self._said:
                self._said.add(text)
                warnings.warn(f"{self._name}: {text}", MbretrieveWarning, stacklevel=2)
        if (error := message.told.get("error")) is not None:
            raise ModelError(f"{self._name}: {error}")
        if (trace := message.told.get("trace")) is not None:
            raise RuntimeError(f"{self._name}:\n{trace}")
        return message.told["kind"], message.arrays

    def _death(self) -> ModelError:
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            status = None
        how = "went silent" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        return ModelError(
            f"{self._name}, process {self._process.pid}, {how} while it encoded documents: run the same command again; "
            "if memory ended there, name fewer devices"
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()  # it keeps nothing
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was still to be written has no reader
                continue


class _Message(NamedTuple):
    """What goes over a pipe: a JSON object and some arrays."""

    told: dict[str, Any]
    arrays: list[FloatArray]


def _send(pipe: IO[bytes], told: Mapping[str, Any], arrays: Sequence[FloatArray] = ()) -> None:
    whole = dict(told) | {"shapes": [array.shape for array in arrays]}
    pipe.write(json.dumps(whole).encode("ascii") + b"\n")
    for array in arrays:
        pipe.write(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    pipe.flush()


def _receive(pipe: IO[bytes]) -> _Message | None:
    """Read a message; None if the other end is gone."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    told, arrays = json.loads(line), []
    for shape in told.pop("shapes"):
        array = np.empty(shape, dtype=np.float32)
        data = pipe.read(array.nbytes)
        if len(data) < array.nbytes:
            return None
        array.reshape(-1)[:] = np.frombuffer(data, dtype=np.float32)
        arrays.append(array)
    return _Message(told, arrays)


def _as_arrays(kind: Kind, vectors: Any) -> list[FloatArray]:
    """Return what an encoder gives of some texts as arrays only; ``_by_text`` undoes it."""
    if kind == "joint":
        return [array for both in vectors for array in (both.tokens, both.pooled)]
    return [vectors] if kind == "dense" else list(vectors)


def _by_text(kind: Kind, arrays: list[FloatArray]) -> list[Any]:
    if kind == "joint":
        return [JointVectors(*both) for both in zip(arrays[::2], arrays[1::2], strict=True)]
    return list(arrays[0]) if kind == "dense" else arrays


def main() -> None:
    """Load the model that the first request names, and encode what the others bring, until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    model: Any = None
    while (request := _receive(sys.stdin.buffer)) is not None:
        arrays: list[FloatArray] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MbretrieveWarning)
            try:
                if model is None:
                    model = _load(**request.told)
                else:
                    made = model.encode_documents(request.told["texts"], **request.told["options"])
                    arrays = _as_arrays(model.kind, made)
                told = {"kind": model.kind}
            except MbretrieveError as error:
                told = {"error": str(error)}
            except Exception:
                told = {"trace": traceback.format_exc()}
        said = [str(one.message) for one in caught if issubclass(one.category, MbretrieveWarning)]
        try:
            _send(answers, told | {"said": said}, arrays)
        except BrokenPipeError:
            os._exit(1)  # who asked is gone, and so is whoever would be told


def _load(loading: dict[str, Any], sharing: int) -> Any:
    import torch

    from mbretrieve.models import load_encoder

    if "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), usable_cores())
        torch.set_num_threads(max(1, threads // sharing if loading["device"] == "cpu" else threads))
    return load_encoder(**loading)


if __name__ == "__main__":
    main()
