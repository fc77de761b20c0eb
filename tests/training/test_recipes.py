"""Every recipe that is shipped loads, and says what the paper it names says."""

from pathlib import Path

import pytest

from mbretrieve.training.config import TrainConfig

RECIPES = Path(__file__).parent.parent.parent / "examples" / "recipes"
TRAINING = [path for path in sorted(RECIPES.glob("*.toml")) if "[[data]]" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_printed_whole(path: Path, tmp_path: Path) -> None:
    config = TrainConfig.load(path)
    printed = tmp_path / "printed.toml"
    printed.write_text(config.to_toml(), "utf-8")
    assert TrainConfig.load(printed) == config


def test_the_papers_settings() -> None:
    dpr, colbert = (TrainConfig.load(RECIPES / f"{name}.toml") for name in ("dpr", "colbert"))
    for config, lr in ((dpr, 8e-5), (colbert, 1e-4)):
        assert (config.run.batch_size, config.schedule.warmup, config.optimizer.lr) == (16, 0.05, lr)
        assert config.model.start == "answerdotai/ModernBERT-base"
    assert (dpr.data[0].limit, dpr.loss.name, dpr.temperature("dense")) == (1_250_000, "infonce", 0.05)
    assert (colbert.data[0].format, colbert.loss.name, colbert.temperature("colbert")) == ("msmarco-bge", "kl", 1.0)


def test_the_recipe_for_long_documents_takes_a_file_of_the_users() -> None:
    config = TrainConfig.load(RECIPES / "long-documents.toml", ["data.0.path=mine.jsonl.gz"])
    assert config.data[0].path == "mine.jsonl.gz"
