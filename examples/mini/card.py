"""The bundled model with its card: what the last training read, and what ``mbretrieve eval`` found.

    python examples/mini/card.py mini/model --output mini/bundled --name "mbretrieve mini, v3" \\
        --recipe examples/recipes/mini-hard.toml --results eval/results/mini-v3 model.start=mini/again run.steps=340

The settings are those that the last training was given. The results are those of folders whose names begin so, one for
each way to search that is named here and was measured.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from mbretrieve.errors import MbretrieveError
from mbretrieve.evaluation.report import read_result
from mbretrieve.jsonl import read_lines
from mbretrieve.models.card import DataSource, Metric, TrainingFacts
from mbretrieve.models.checkpoint import load, save
from mbretrieve.training.config import TrainConfig

WAYS = {
    "colbert": "late interaction",
    "colbert-1bit": "late interaction, 1 bit a dimension",
    "colbert-hybrid": "hybrid, late interaction and BM25",
    "dense": "dense",
}
"""What is behind a model's name in the names of folders of results, and what was searched by."""
MEASURE = "ndcg@10"
_HOW = (
    "On the test splits, over an index as `mbretrieve eval` makes it (2 bits a dimension where nothing else is said) "
    "and by exact comparison, as `{}-*` of the project have it.\n\n"
)


def figures(results: Path) -> Iterator[Metric]:
    """Yield what was measured, way by way, and task by task."""
    for suffix, way in WAYS.items():
        for path in sorted(results.parent.glob(f"{results.name}-{suffix}/*/*.json")):
            result = read_result(path)
            yield Metric(f"{result.task}, {way}", MEASURE, result.metrics[MEASURE])
            if result.exact_metrics:
                yield Metric(f"{result.task}, late interaction, exact", MEASURE, result.exact_metrics[MEASURE])


def main() -> None:
    """Save a model with a card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--name", required=True, help="what the card calls the model")
    parser.add_argument("--recipe", type=Path, required=True, help="of the last training; its files are where it says")
    parser.add_argument("--results", type=Path, required=True, help="the folders of results, without -WAY")
    parser.add_argument("settings", nargs="*", help="key=value, as mbretrieve train was given them")
    arguments = parser.parse_intermixed_args()
    config = TrainConfig.load(arguments.recipe, arguments.settings)
    data = [
        DataSource(source.name, sum(1 for _ in read_lines(Path(source.path))), source.licence)
        for source in config.data
        if source.path
    ]
    facts = TrainingFacts(
        name=arguments.name,
        licence=config.card.licence,
        recipe=config.to_toml(),
        data=tuple(data),
        metrics=tuple(figures(arguments.results)),
        seeds=(config.run.seed,),
        joint=config.model.kind == "joint",
    )
    save(load(arguments.model), arguments.output, facts=facts)
    card = arguments.output / "README.md"
    how = _HOW.format(arguments.results)
    card.write_text(card.read_text("utf-8").replace("## Figures\n\n", f"## Figures\n\n{how}"), "utf-8")


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"card.py: {error}")
