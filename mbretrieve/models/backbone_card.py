"""The model card of a backbone alone, pre-trained by masked-language modelling: what it is, and how it is used."""

from collections.abc import Mapping

from torch import Tensor

from mbretrieve import __version__
from mbretrieve.models.card import TrainingFacts, hub_name, inline, licence_fields, making, origin, table
from mbretrieve.models.config import ModernBertConfig

_USE = """\
## Use

As a start to train a retriever from, `pip install "mbretrieve[train]"`, with this folder as `model.start`:

```
mbretrieve train recipe.toml --output retriever model.start=.
```

As a masked-language model, `pip install "transformers>=4.48"`:

```python
from transformers import pipeline

print(pipeline("fill-mask", model=".")("The capital of France is [MASK]."))
```
"""


def backbone_card(config: ModernBertConfig, tensors: Mapping[str, Tensor], facts: TrainingFacts) -> str:
    """Write README.md of a folder that holds a ModernBERT with its masked-language head."""
    from huggingface_hub import ModelCardData

    licence, licence_name = licence_fields(facts.licence)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["mbretrieve", "modernbert", "masked-lm"],
        license=licence,
        license_name=licence_name,
        base_model=hub_name(facts.base_model),
    )
    made = f" Trained from {origin(facts.base_model)}." if facts.base_model else ""
    made += f" Licence of the weights: {inline(facts.licence)}." if facts.licence else ""
    rows = [
        ("parameters", f"{sum(tensor.numel() for tensor in tensors.values()):,}"),
        ("layers", f"{config.num_hidden_layers}, {config.hidden_size} wide, {config.num_attention_heads} heads"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("positions", f"{config.max_position_embeddings:,}"),
        ("RoPE base, global and local layers", f"{config.global_rope_theta:,.0f} and {config.local_rope_theta:,.0f}"),
        ("window of the local layers", f"{config.local_attention} tokens"),
    ]
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {inline(facts.name or 'A backbone')}\n",
        f"A ModernBERT pre-trained by masked-language modelling; it is no retriever yet.{made}\n",
        _USE,
        "## Sizes\n\n" + table(("what", "how much"), rows),
        making(facts),
        f"Saved by mbretrieve {__version__}.",
    ]
    return "\n".join(part for part in parts if part) + "\n"
