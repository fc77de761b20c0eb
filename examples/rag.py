"""Retrieval-augmented generation up to the model's door: retrieve, then print the prompt with its sources.

``python examples/rag.py [QUESTION]``: any language model can take it from there.
"""

import sys
import tempfile

from mbretrieve import ColBERT, Document, Hit, Retriever

HANDBOOK = [
    Document("leave", "Employees have 25 days of leave a year. Unused days lapse at the end of March.", {"page": 12}),
    Document(
        "travel", "Book trains in second class. Flights need the approval of the head of department.", {"page": 31}
    ),
    Document("expenses", "Send receipts within thirty days; expenses are paid with the next salary.", {"page": 33}),
    Document("security", "Lock the screen when you leave the desk. Report lost badges at once.", {"page": 40}),
]


def prompt(question: str, hits: list[Hit]) -> str:
    """Join the passages found into a prompt that asks for an answer with its sources."""
    passages = "\n".join(f"[{n}] (page {hit.metadata['page']}) {hit.text}" for n, hit in enumerate(hits, 1))
    return (
        "Answer the question from the passages below and name the passages used, like [1]. "
        f"If they do not answer it, say so.\n\n{passages}\n\nQuestion: {question}\nAnswer:"
    )


def main() -> None:
    """Index a small handbook and print the prompt for a question."""
    question = " ".join(sys.argv[1:]) or "how many vacation days do I get?"
    with tempfile.TemporaryDirectory() as place, Retriever.create(f"{place}/i", ColBERT.from_pretrained()) as retriever:
        retriever.add(HANDBOOK)
        print(prompt(question, retriever.search([question], k=2)[0]))


if __name__ == "__main__":
    main()
