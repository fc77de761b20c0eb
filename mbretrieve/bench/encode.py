"""How fast documents become vectors here: the efficiency table of the ModernBERT paper (arXiv 2412.13663, Table 2), for
a model and a device, beside other libraries and beside what the machine can do at most."""

import shlex
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mbretrieve.bench import flops
from mbretrieve.bench.capacity import fits_in_memory, largest
from mbretrieve.bench.engines import Engine, Place, agreement, start
from mbretrieve.bench.engines import parse as parse_dtypes
from mbretrieve.bench.roofline import PEAKS, products
from mbretrieve.bench.shapes import SHAPES, write_model
from mbretrieve.bench.turns import take_turns
from mbretrieve.bench.works import WORKS, Documents, Work, documents, lengths, parse, words
from mbretrieve.errors import DataError, ModelError
from mbretrieve.evaluation import provenance
from mbretrieve.models.checkpoint import load
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.config import FULL, ModernBertConfig
from mbretrieve.models.device import resolve_device
from mbretrieve.models.encoder import BATCH_TOKENS
from mbretrieve.models.projection import Layer
from mbretrieve.models.source import locate
from mbretrieve.types import Progress

TURNS = 7
"""At most so many runs of an engine count, whose median is taken; one more is to warm up."""
SECONDS = 20.0
"""An engine has about so long for a work."""
MEASURED = (
    "tokens of documents, padding not counted, from text to float32 vectors on the host; medians of engines that take "
    "turns; roofline: a layer's four matrix products, batch_tokens rows at a time, in the same turns; share of it: "
    "operations of layers' matrices, attention within reach and projection, nothing else counted; share_of_peak: the "
    "same of what the device's maker promises, where it is known; variable_to_fixed: tokens/s at lengths about half "
    "the size over those at the whole of it; largest_batch: documents of the work's greatest length in one batch, on "
    "CUDA only"
)
_PART = 10  # mbretrieve's run is to take this part of the time: a peer may be so many times as slow
_MOST_TOKENS = 1 << 20
_CHECKED = (16, 100, 300)  # tokens of the texts for which the engines' vectors are compared
_ALIKE = 0.98  # the least cosine of vectors that are said to be the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured.

    ``model``: as ``ColBERT.from_pretrained`` takes it; or ``shapes``, a name in SHAPES, for random weights. ``work``:
    names in WORKS parted by commas; None: all that the model has positions for. ``dtype``: mbretrieve's, parted by
    commas; None: as it runs by itself, on a CPU in int8, too. ``seconds``: for an engine on a work,
    about; each runs once at least. ``batch_tokens`` go through at once.
    """

    model: str | None = None
    shapes: str | None = None
    device: str | None = None
    work: str | None = None
    dtype: str | None = None
    peers: bool = False
    seconds: float = SECONDS
    batch_tokens: int = BATCH_TOKENS

    def command(self, name: str) -> str:
        """Return the command line that asks for this, with the model under ``name``."""
        words = ["mbretrieve", "bench", "encode"]
        for option, value in (
            ("--model", None if self.model is None else name),
            ("--shapes", self.shapes),
            ("--device", self.device),
            ("--work", self.work),
            ("--dtype", self.dtype),
            ("--seconds", None if self.seconds == SECONDS else f"{self.seconds:g}"),
            ("--batch-tokens", None if self.batch_tokens == BATCH_TOKENS else str(self.batch_tokens)),
        ):
            words += [] if value is None else [option, value]
        return shlex.join([*words, *(["--peers"] if self.peers else [])])


@dataclass(frozen=True, slots=True)
class Row:
    """What one engine gives on one work; ``seconds`` are its runs'. ``peak``: GFLOP/s that the device's maker promises,
    if it is known. ``largest_batch`` is None but on a CUDA device."""

    work: str
    engine: str
    dtype: str
    attention: str
    documents: int
    tokens: int
    operations: int
    seconds: list[float]
    roofline: float
    peak: float | None
    largest_batch: int | None
    least_cosine: float

    @property
    def label(self) -> str:
        """The engine in words."""
        return f"{self.engine} {self.dtype}{', flash-attn' if 'flash' in self.attention else ''}"

    @property
    def median(self) -> float:
        """Seconds of a run."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of documents, padding not counted."""
        return self.tokens / self.median

    @property
    def share_of_roofline(self) -> float:
        """The operations that were needed, by the second, over those of bare matrix products in this dtype."""
        return self.operations / self.median / 1e9 / self.roofline

    @property
    def share_of_peak(self) -> float | None:
        """The same over what the device's maker promises."""
        return None if self.peak is None else self.operations / self.median / 1e9 / self.peak

    @property
    def roofline_tokens_per_second(self) -> float:
        """What it would be at the whole of the roofline."""
        return self.tokens_per_second / self.share_of_roofline

    def as_json(self) -> dict[str, Any]:
        """Return the figures, rounded."""
        return {
            "work": self.work,
            "engine": self.engine,
            "dtype": self.dtype,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "share_of_roofline": round(self.share_of_roofline, 4),
            "share_of_peak": None if self.share_of_peak is None else round(self.share_of_peak, 4),
            "largest_batch": self.largest_batch,
            "attention": self.attention,
            "documents_per_second": round(self.documents / self.median, 2),
            "gflops": round(self.operations / self.median / 1e9, 1),
            "least_cosine": round(self.least_cosine, 5),
            "documents": self.documents,
            "tokens": self.tokens,
            "seconds": [round(run, 4) for run in self.seconds],
        }


class Ratio(NamedTuple):
    """How fast an engine is at variable lengths over how fast it is at fixed ones, up to one size in tokens."""

    size: int
    engine: str
    dtype: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Report:
    """All rows; ``roofline`` is GFLOP/s by dtype; ``left_out`` says of what was not measured why."""

    model: str
    config: ModernBertConfig
    device: torch.device
    rows: list[Row]
    roofline: dict[str, float]
    left_out: dict[str, str]
    asked: Asked

    def variable_to_fixed(self) -> list[Ratio]:
        """Return for each engine, and size measured in both ways, its speed at variable lengths over fixed ones."""
        speeds = {(row.work, row.engine, row.dtype): row.tokens_per_second for row in self.rows}
        return [
            Ratio(size, engine, dtype, speed / speeds[f"{size}-fixed", engine, dtype])
            for (work, engine, dtype), speed in speeds.items()
            if work == f"{(size := WORKS[work].longest)}-variable" and (f"{size}-fixed", engine, dtype) in speeds
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the figures and what they rest on; no path of this machine."""
        config = self.config
        return {
            "machine": provenance.machine() | {"device": device_name(self.device)},
            "roofline_gflops": {dtype: round(rate, 1) for dtype, rate in self.roofline.items()},
            "rows": [row.as_json() for row in self.rows],
            "variable_to_fixed": [
                {**ratio._asdict(), "ratio": round(ratio.ratio, 4)} for ratio in self.variable_to_fixed()
            ],
            "left_out": self.left_out,
            "model": {
                "name": self.model,
                "hidden_size": config.hidden_size,
                "intermediate_size": config.intermediate_size,
                "layers": config.num_hidden_layers,
                "global_layers": config.layer_types.count(FULL),
                "heads": config.num_attention_heads,
                "local_attention": config.local_attention,
            },
            "batch_tokens": self.asked.batch_tokens,
            "seconds_an_engine": self.asked.seconds,
            "date": datetime.now(UTC).date().isoformat(),
            "versions": provenance.versions(),
            "command": self.asked.command(self.model),
            "measured": MEASURED,
        }


def device_name(device: torch.device) -> str:
    """Return what a device is called: a GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def measure(asked: Asked, progress: Progress | None = None) -> Report:
    """Measure every engine on every work, and the roofline beside them.

    Raises: DataError for a work or a dtype that is none, or a work that is too long; ModelError as
    ``ColBERT.from_pretrained``.
    """
    if asked.model is not None and asked.shapes is not None:
        raise DataError(f"--model {asked.model} and --shapes {asked.shapes} came, expected one of them")
    dtypes = parse_dtypes(asked.dtype)
    where = resolve_device(asked.device)
    with tempfile.TemporaryDirectory(prefix="mbretrieve-bench-") as place:
        folder = Path(place) / "model"
        name = _write(folder, asked)
        plain = ColBERT.from_pretrained(folder, device="cpu", dtype="float32")
        config = plain.backbone.config
        works = parse(asked.work, config.max_position_embeddings)
        started = start(Place(folder, where, asked.batch_tokens), asked.peers, dtypes)
        left_out = started.left_out | {
            other: f"documents of {WORKS[other].longest} tokens; the model has {config.max_position_embeddings} "
            "positions"
            for other in WORKS
            if asked.work is None and other not in works
        }
        bench = _Bench(plain, words(plain, folder), started.engines, where, asked)
        left_out |= bench.leave_out_strangers()
        rows = bench.rows([bench.timed(work, progress) for work in works])
        return Report(name, config, where, rows, bench.roofline(), left_out, asked)


def _write(folder: Path, asked: Asked) -> str:
    """Write the model in the layout and the dtype that every engine reads; return what it is called."""
    if asked.shapes is not None:
        write_model(folder, SHAPES[asked.shapes])
        return f"ModernBERT-{asked.shapes} shapes, random weights"
    positions = load(locate(asked.model).folder).config.max_position_embeddings
    loaded = ColBERT.from_pretrained(asked.model, device="cpu", dtype="float32", document_length=positions)
    loaded.save_pretrained(folder, layout="sentence-transformers")
    return _plain_name(loaded.identity.name)


def _plain_name(model: str) -> str:
    """Return a model's name, of a folder its last part: where it lies is nobody's business."""
    return Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model


def _encode(engine: Engine, made: Documents) -> None:
    """Encode, and count what came: who cuts documents short is not faster."""
    came = sum(map(len, engine.encode(made)))
    if came != made.rows:
        raise ModelError(f"{engine.name} {engine.dtype} gave {came} vectors, expected {made.rows}: leave --peers out")


class _Timed(NamedTuple):
    """One work's documents, and the seconds of each engine's runs."""

    work: str
    documents: Documents
    seconds: list[list[float]]
    largest: list[int | None]


class _Bench:
    """The engines, and what they are timed on."""

    def __init__(
        self, plain: ColBERT, vocabulary: list[str], engines: list[Engine], device: torch.device, asked: Asked
    ) -> None:
        self._plain, self._words, self._asked, self._device = plain, vocabulary, asked, device
        self._engines = engines
        self._cosines: list[float] = []
        config = plain.backbone.config
        self._products = {
            dtype: products(config, asked.batch_tokens, getattr(torch, dtype), device)
            for dtype in dict.fromkeys(engine.dtype for engine in engines)
        }
        self._rates: dict[str, list[float]] = {dtype: [] for dtype in self._products}

    def leave_out_strangers(self) -> dict[str, str]:
        """Compare the engines' vectors, which warms them up too, and go on without those that do something else."""
        checked = documents(self._plain, self._words, list(_CHECKED))
        cosines, out, alike = agreement(self._engines, checked), {}, []
        for engine, cosine in zip(self._engines, cosines, strict=True):
            if cosine is not None and cosine >= _ALIKE:
                alike.append(engine)
                self._cosines.append(cosine)
                continue
            how = "other rows" if cosine is None else f"a vector at cosine {cosine:.3f}"
            out[f"{engine.name} {engine.dtype}"] = f"{how}: the two do not do the same"
        self._engines = alike
        return out

    def timed(self, name: str, progress: Progress | None) -> _Timed:
        """Time all engines and the roofline on one work, in turns."""
        longest, made = WORKS[name].longest, self._documents(WORKS[name])
        tasks = [partial(_encode, engine, made) for engine in self._engines]
        bare = {dtype: run for dtype, (run, _) in self._products.items()}
        if progress is not None:
            progress.start(name, (len(tasks) + len(bare)) * (TURNS + 1))
        try:
            took = take_turns({**dict(enumerate(tasks)), **bare}, self._asked.seconds, TURNS, progress)
        finally:  # Ctrl-C too: a bar that is left there keeps the cursor hidden
            if progress is not None:
                progress.finish()
        for dtype, (_, operations) in self._products.items():
            self._rates[dtype] += [operations / seconds / 1e9 for seconds in took[dtype]]
        sizes = [self._largest(engine, longest) for engine in self._engines]
        return _Timed(name, made, [took[at] for at in range(len(tasks))], sizes)

    def roofline(self) -> dict[str, float]:
        """Return GFLOP/s by dtype, the median of all turns."""
        return {dtype: statistics.median(rates) for dtype, rates in self._rates.items()}

    def rows(self, timed: Sequence[_Timed]) -> list[Row]:
        """Return a row for each engine and work."""
        config = self._plain.backbone.config
        matrices = [layer.linear.weight for layer in self._plain.projection if isinstance(layer, Layer)]
        head = [(weight.shape[1], weight.shape[0]) for weight in matrices]
        rates = self.roofline()
        return [
            Row(
                work=one.work,
                engine=engine.name,
                dtype=engine.dtype,
                attention=engine.attention,
                documents=len(one.documents.texts),
                tokens=one.documents.tokens,
                operations=flops.documents(config, head, one.documents.lengths),
                seconds=seconds,
                roofline=rates[engine.dtype],
                peak=PEAKS.get((device_name(self._device), engine.dtype)),
                largest_batch=most,
                least_cosine=cosine,
            )
            for one in timed
            for engine, cosine, seconds, most in zip(
                self._engines, self._cosines, one.seconds, one.largest, strict=True
            )
        ]

    def _documents(self, work: Work) -> Documents:
        """Make as many documents as mbretrieve encodes in its part of the time, or as fill a batch if that is more."""
        few = documents(self._plain, self._words, lengths(work, 0))
        [*_, seconds] = take_turns({"": partial(self._engines[0].encode, few)}, self._asked.seconds / _PART, 1)[""]
        tokens = max(few.tokens / seconds * self._asked.seconds / _PART, self._asked.batch_tokens)
        return documents(self._plain, self._words, lengths(work, min(round(tokens), _MOST_TOKENS)))

    def _largest(self, engine: Engine, longest: int) -> int | None:
        if self._device.type != "cuda":
            return None
        [text] = documents(self._plain, self._words, [longest]).texts
        return largest(lambda count: fits_in_memory(partial(engine.at_once, [text] * count), self._device))
