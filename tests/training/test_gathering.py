"""Two processes against one: the loss of a whole batch and its gradient do not depend on how many encode it."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mbretrieve.scoring import cosine, maxsim_packed
from mbretrieve.training.gathering import gather_counts, gather_rows, ranks
from mbretrieve.training.gradcache import cached_backward
from mbretrieve.training.losses import info_nce

# Texts of each rank; those of one side have as many tokens as the numbers say.
QUERIES = [[3, 1, 4], [2, 5]]
DOCUMENTS = [[7, 2, 5], [9, 1]]
WIDTH, DIM, SCALE = 6, 4, 3.0


def tokens(rank: int, lengths: list[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * rank + seed)
    return torch.randn(sum(lengths), WIDTH, generator=generator)


def pooled(rows: Tensor, lengths: list[int]) -> Tensor:
    return torch.stack([text.mean(0) for text in rows.split(lengths)])


def step(own: list[int], cut: int) -> dict[str, Tensor]:
    """A step of the texts of some ranks, the documents in ``cut`` micro-batches: its loss and gradients."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, DIM)
    query_lengths = [count for rank in own for count in QUERIES[rank]]
    document_lengths = [count for rank in own for count in DOCUMENTS[rank]]
    queries = torch.cat([tokens(rank, QUERIES[rank], 0) for rank in own])
    documents = torch.cat([tokens(rank, DOCUMENTS[rank], 1) for rank in own])
    streams = [queries, *documents.tensor_split(cut)]

    def loss(found: list[Tensor]) -> Tensor:
        rows = torch.cat(found[1:])
        everybodys = gather_rows(rows), gather_counts(document_lengths, rows.device)
        late = gather_rows(maxsim_packed(found[0], query_lengths, *everybodys))  # own queries' rows, then everybody's
        dense = cosine(gather_rows(pooled(found[0], query_lengths)), gather_rows(pooled(rows, document_lengths)))
        positives = torch.arange(len(late))
        return info_nce(late, positives, scale=SCALE, symmetric=True) + info_nce(dense, positives, scale=SCALE)

    value = cached_backward(lambda place: head(streams[place]), len(streams), loss)
    grads = {name: parameter.grad for name, parameter in head.named_parameters() if parameter.grad is not None}
    for grad in grads.values():  # as DistributedDataParallel does
        if ranks() > 1:
            dist.all_reduce(grad)
            grad /= ranks()
    return {"loss": value, **grads}


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    nobody = gather_rows(torch.ones(3 * rank, 2, dtype=torch.bfloat16))  # rank 0 has no row
    assert nobody.shape == (3, 2)
    assert gather_counts(QUERIES[rank], torch.device("cpu")) == QUERIES[0] + QUERIES[1]
    own = torch.full((rank + 1, 2), float(rank), requires_grad=True)
    whole = gather_rows(own)
    assert whole[:, 0].tolist() == [0.0, 1.0, 1.0]
    (whole * (rank + 1)).sum().backward()
    assert own.grad is not None
    assert (own.grad == 3.0).all()  # 1 of rank 0's loss and 2 of rank 1's
    result = step([rank], cut=2 + rank)
    (Path(folder) / f"{rank}.txt").write_text(json.dumps({name: value.tolist() for name, value in result.items()}))
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.test_gathering"]
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=Path(__file__).parents[2]) for rank in (0, 1)]
    expected = step([0, 1], cut=1)
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.txt").read_text())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(torch.tensor(found[name]), value, atol=1e-5, rtol=1e-5, msg=name)


def test_without_a_group_nothing_is_sent() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows
    assert gather_counts([2, 1], torch.device("cpu")) == [2, 1]
    assert ranks() == 1


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
