"""ModernBertConfig: reads every config.json spelling of ModernBERT in the wild and says what it will not compute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mbretrieve.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "gelu_new", "silu", "swish", "relu")

# Keys that would change the forward if they said anything else: another value is refused by name.
_ONLY: dict[str, tuple[object, ...]] = {
    "is_causal": (None, False),
    "is_decoder": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
    "rope_scaling": (None, {}, {"rope_type": "default"}, {"type": "default"}),
    "quantization_config": (None, {}),
    "pruned_heads": (None, {}, []),
}
# Keys of a rope_parameters record that a default RoPE leaves without effect.
_ROPE_KEYS = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig:
    """What the forward of a ModernBERT depends on, under transformers' names; the defaults are ModernBERT-base's.

    ``local_attention`` is the whole window: a token of a sliding layer attends to keys at a distance of at most
    ``local_attention // 2`` tokens on each side (``half_window``). ``other`` holds the keys of the file on which the
    forward does not depend (token ids, heads), so that a saved model keeps them. A model without layers is its
    normalised embeddings: a static model.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    pad_token_id: int | None = None
    layer_types: tuple[str, ...] = ()
    local_attention: int = 128
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    other: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.layer_types:
            object.__setattr__(self, "layer_types", _alternating(self.num_hidden_layers, 3))
        _check(self)

    @property
    def head_dim(self) -> int:
        """The width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def half_window(self) -> int:
        """The greatest distance at which a sliding layer's token attends."""
        return self.local_attention // 2

    @property
    def rope_thetas(self) -> dict[str, float]:
        """The base of RoPE's angles in each type of layer."""
        return {FULL: self.global_rope_theta, SLIDING: self.local_rope_theta}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ModernBertConfig":
        """Read a config.json: transformers 4's keys, transformers 5's, or both (then 5's count, as there).

        Raises: ModelError naming the key that is missing its type, contradicts another or asks for what this
        backbone does not compute (another architecture, a scaled RoPE, a causal mask).
        """
        if (came := config.get("model_type")) != "modernbert":
            raise ModelError(
                f"config.json: model_type is {came!r}, expected 'modernbert': name a ModernBERT checkpoint"
            )
        for key, allowed in _ONLY.items():
            if config.get(key) not in allowed:
                raise ModelError(f"config.json: {key} is {config[key]!r}, which is not supported: expected it unset")
        known = {key: _typed(config, key) for key in _TYPES if config.get(key) is not None}
        layers = known.get("num_hidden_layers", cls.num_hidden_layers)
        full_theta, sliding_theta = _rope_thetas(config)
        result = cls(
            **known,
            layer_types=_layer_types(config, layers),
            local_attention=_local_attention(config),
            global_rope_theta=full_theta,
            local_rope_theta=sliding_theta,
            other={key: value for key, value in config.items() if key not in _TYPES and key not in _ATTENTION_KEYS},
        )
        if (head_dim := config.get("head_dim")) not in (None, result.head_dim):
            raise ModelError(
                f"config.json: head_dim is {head_dim!r}, expected hidden_size / num_attention_heads = {result.head_dim}"
            )
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return config.json's content: transformers 5's keys and, where they can say the same, transformers 4's."""
        ours = {key: getattr(self, key) for key in _TYPES}
        result: dict[str, Any] = {
            "architectures": ["ModernBertModel"],
            **self.other,
            **ours,
            "model_type": "modernbert",
            "layer_types": list(self.layer_types),
            "local_attention": self.local_attention,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in self.rope_thetas.items()
            },
            "global_rope_theta": self.global_rope_theta,
            "local_rope_theta": self.local_rope_theta,
        }
        if (every := _period(self.layer_types)) is not None:
            result["global_attn_every_n_layers"] = every
        return dict(sorted(result.items()))


_TYPES: dict[str, type] = {
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "hidden_activation": str,
    "max_position_embeddings": int,
    "initializer_range": float,
    "initializer_cutoff_factor": float,
    "norm_eps": float,
    "norm_bias": bool,
    "attention_bias": bool,
    "mlp_bias": bool,
    "embedding_dropout": float,
    "attention_dropout": float,
    "mlp_dropout": float,
    "pad_token_id": int,
}
_ATTENTION_KEYS = {
    "layer_types",
    "global_attn_every_n_layers",
    "local_attention",
    "sliding_window",
    "rope_parameters",
    "global_rope_theta",
    "local_rope_theta",
}
_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "global_rope_theta",
    "local_rope_theta",
)
_NOT_NEGATIVE = ("num_hidden_layers", "norm_eps", "local_attention")
_RATES = ("embedding_dropout", "attention_dropout", "mlp_dropout")


def _typed(config: Mapping[str, Any], key: str, kind: type | None = None) -> Any:
    """Return ``config[key]`` as its type; an int will do for a float, a bool for neither."""
    value, expected = config[key], kind or _TYPES[key]
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ModelError(f"config.json: {key} is {value!r}, expected {expected.__name__}")
    return value


def _number(config: Mapping[str, Any], key: str) -> float:
    return float(_typed(config, key, float))


def _check(config: ModernBertConfig) -> None:
    for key in _POSITIVE:
        if not getattr(config, key) > 0:
            raise ModelError(f"config.json: {key} is {getattr(config, key)}, expected more than 0")
    for key in _RATES:
        if not 0 <= getattr(config, key) < 1:
            raise ModelError(f"config.json: {key} is {getattr(config, key)}, expected a rate from 0 to below 1")
    for key in _NOT_NEGATIVE:
        if not getattr(config, key) >= 0:
            raise ModelError(f"config.json: {key} is {getattr(config, key)}, expected 0 or more")
    if config.hidden_size % (2 * config.num_attention_heads):
        raise ModelError(
            f"config.json: hidden_size {config.hidden_size} does not divide into num_attention_heads "
            f"{config.num_attention_heads} heads of even width, which RoPE needs"
        )
    if config.hidden_activation not in ACTIVATIONS:
        raise ModelError(
            f"config.json: hidden_activation is {config.hidden_activation!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        raise ModelError(
            f"config.json: pad_token_id is {config.pad_token_id}, expected an id below vocab_size {config.vocab_size}"
        )
    if len(config.layer_types) != config.num_hidden_layers:
        raise ModelError(
            f"config.json: layer_types names {len(config.layer_types)} layers, "
            f"expected num_hidden_layers = {config.num_hidden_layers}"
        )
    if wrong := sorted({str(kind) for kind in config.layer_types} - {FULL, SLIDING}):
        raise ModelError(f"config.json: layer_types has {wrong[0]!r}, expected {FULL!r} or {SLIDING!r}")


def _alternating(layers: int, every: int) -> tuple[str, ...]:
    return tuple(SLIDING if layer % every else FULL for layer in range(layers))


def _period(layer_types: tuple[str, ...]) -> int | None:
    """Return the n with which "every n-th layer is global" says the same as ``layer_types``, if there is one."""
    candidates = range(1, len(layer_types) + 1)
    return next((n for n in candidates if _alternating(len(layer_types), n) == layer_types), None)


def _layer_types(config: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list | tuple) or (layers and not types):
            raise ModelError(f"config.json: layer_types is {types!r}, expected a list with one name a layer")
        return tuple(types)
    if config.get("global_attn_every_n_layers") is None:
        return _alternating(layers, 3)
    every = _typed(config, "global_attn_every_n_layers", int)
    if every < 1:
        raise ModelError(f"config.json: global_attn_every_n_layers is {every}, expected 1 or more")
    return _alternating(layers, every)


def _local_attention(config: Mapping[str, Any]) -> int:
    """``sliding_window`` is transformers 5's name for half of ``local_attention``."""
    half = None if config.get("sliding_window") is None else int(_typed(config, "sliding_window", int))
    if config.get("local_attention") is None:
        return ModernBertConfig.local_attention if half is None else 2 * half
    whole = int(_typed(config, "local_attention", int))
    if half not in (None, whole // 2):
        raise ModelError(f"config.json: sliding_window is {half}, expected half of local_attention, which is {whole}")
    return whole


def _rope_thetas(config: Mapping[str, Any]) -> tuple[float, float]:
    """Return the RoPE bases of the full and the sliding layers.

    transformers 4 has ``global_rope_theta`` and ``local_rope_theta`` (null: the global one); transformers 5 one record
    for each layer type in ``rope_parameters``; flat keys there hold for a type that has no record.
    """
    full = sliding = ModernBertConfig.global_rope_theta
    if config.get("global_rope_theta") is not None:
        full = sliding = _number(config, "global_rope_theta")
    if config.get("local_rope_theta") is not None:
        sliding = _number(config, "local_rope_theta")
    elif "local_rope_theta" not in config:
        sliding = ModernBertConfig.local_rope_theta
    rope = config.get("rope_parameters")
    if rope is None:
        return full, sliding
    if not isinstance(rope, Mapping):
        raise ModelError(f"config.json: rope_parameters is {rope!r}, expected one record for each layer type")
    # A flat record holds for both; transformers 5.3 writes one around the others if all layers are of one type.
    flat = {key: value for key, value in rope.items() if key not in (FULL, SLIDING)}
    full, sliding = (_theta(flat, "rope_parameters", theta) for theta in (full, sliding))
    return (
        _theta(rope.get(FULL), f"rope_parameters.{FULL}", full),
        _theta(rope.get(SLIDING), f"rope_parameters.{SLIDING}", sliding),
    )


def _theta(record: Any, name: str, default: float) -> float:
    if record is None:
        return default
    if not isinstance(record, Mapping):
        raise ModelError(f"config.json: {name} is {record!r}, expected a record with rope_theta")
    kind = record.get("rope_type", record.get("type", "default"))
    if kind != "default":
        raise ModelError(f"config.json: {name}.rope_type is {kind!r}, expected 'default'")
    if record.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError(
            f"config.json: {name}.partial_rotary_factor is {record['partial_rotary_factor']!r}, expected 1"
        )
    if unknown := sorted(record.keys() - _ROPE_KEYS):
        raise ModelError(f"config.json: {name}.{unknown[0]} is not supported, expected rope_theta alone")
    return default if record.get("rope_theta") is None else _number(record, "rope_theta")
