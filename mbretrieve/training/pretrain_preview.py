"""What a pre-training run would do, said before it starts: sizes, steps, tokens, memory, and the first sequence."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from mbretrieve.training.masked_steps import PhaseSteps, batch_size
from mbretrieve.training.pretrain_config import PretrainConfig
from mbretrieve.training.pretrain_start import begin, in_phase
from mbretrieve.training.preview import activation_bytes
from mbretrieve.training.token_store import TokenStore

_SAMPLE = 512  # texts of each source
_SHOWN = 64  # tokens of the first sequence
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """A phase: its steps, its tokens to a few in a hundred, and the RoPE base of its global layers."""

    name: str
    steps: int
    tokens: int
    length: int
    global_rope_theta: float


@dataclass(frozen=True, slots=True)
class PretrainPreview:
    """What a run would do. ``memory`` in bytes: weights, gradients, optimiser and a micro-batch's activations.

    ``first``: the beginning of the first sequence as it is shown to the model, and as it is.
    """

    parameters: int
    vocabulary: int
    memory: int
    phases: tuple[PhasePlan, ...]
    first: tuple[str, str]


def preview(config: PretrainConfig) -> PretrainPreview:
    """Prepare a run, on the first texts of each source, without writing anything that stays.

    A tokenizer that is to be trained is trained. Raises: as ``pretrain``.
    """
    start = begin(config)
    model = start.model(config.phase[0])
    sources = [replace(source, limit=min(_SAMPLE, source.limit or _SAMPLE)) for source in config.text]
    with tempfile.TemporaryDirectory(prefix="mbretrieve-") as name:
        store = TokenStore.open(Path(name) / "tokens", sources, start.tokenizer)
        steps = PhaseSteps(config, 0, store, start.tokenizer)
        sequence = steps.masked(0, 0, steps.draw(0)[0])
        whole = sequence.inputs.copy()
        whole[sequence.chosen] = sequence.labels
        del store, steps  # closes the files, which a folder to be removed may not have open everywhere
    parameters = sum(parameter.numel() for parameter in model.parameters())
    longest = max(phase.length for phase in config.phase)
    micro_batch = max(longest, config.run.token_budget)
    return PretrainPreview(
        parameters=parameters,
        vocabulary=start.config.vocab_size,
        memory=4 * _FLOAT32 * parameters
        + activation_bytes(start.config, micro_batch, checkpointing=config.model.gradient_checkpointing),
        phases=tuple(
            PhasePlan(
                phase.name,
                phase.total_steps,
                sum(batch_size(phase, step) for step in range(phase.total_steps)) * phase.length,
                phase.length,
                in_phase(start.config, phase).global_rope_theta,
            )
            for phase in config.phase
        ),
        first=(
            start.tokenizer.decode(sequence.inputs[:_SHOWN].tolist()),
            start.tokenizer.decode(whole[:_SHOWN].tolist()),
        ),
    )
