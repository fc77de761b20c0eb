"""Index whole documents, however long, and find the passage that answers: ``python examples/documents.py``."""

import sys
import tempfile

from mbretrieve import ColBERT, Document, Retriever

REPORT = " ".join(
    [
        "The harbour authority met eleven times during the year. " * 40,
        "The new breakwater was paid for by a loan from the regional bank, to be repaid over twenty years.",
        "Ferry traffic grew by a tenth, mostly in the summer months. " * 40,
    ]
)


def main() -> None:
    """Index three documents, ask one question, and print the passage that answers it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Retriever.create(f"{folder}/my.index", ColBERT.from_pretrained()) as retriever,
    ):
        retriever.add(
            [
                Document("harbour-report", REPORT, {"year": 2024}, context="Harbour authority, annual report"),
                Document("bakery", "Bread needs flour, water, salt and time.", {"year": 2023}),
                Document("old-harbour", "The old harbour was built of oak piles.", {"year": 1890}),
            ]
        )
        question = " ".join(sys.argv[1:]) or "who financed the breakwater?"
        for hit in retriever.search([question], k=2, where={"year": {"gte": 1900}})[0]:
            start, end = hit.span  # the window of the document that matched best
            print(f"{hit.score:.3f}  {hit.id}, characters {start}-{end} of {len(hit.text)}:\n    {hit.text[start:end]}")


if __name__ == "__main__":
    main()
