"""Index a codebase and search it by meaning, as a library: ``python examples/code_search.py [FOLDER] [QUESTION]``."""

import sys
import tempfile
from pathlib import Path

from mbretrieve import ColBERT, Retriever
from mbretrieve.folder import sync


def main() -> None:
    """Index a folder (this project's examples, if none is named), then print the functions that answer a question."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    question = sys.argv[2] if len(sys.argv) > 2 else "join the passages into a prompt"
    with tempfile.TemporaryDirectory() as place:
        retriever = Retriever.create(f"{place}/code.index", ColBERT.from_pretrained())
        report = sync(retriever, [root])  # call it again whenever files have changed: only what changed is encoded
        print(f"{report.files} files, {report.documents.added} units")
        for hit in retriever.search([question], k=3, where={"language": "python"})[0]:
            where = f"{hit.metadata['path']}:{hit.metadata['start_line']}"
            print(f"{hit.score:.3f}  {where}  {hit.metadata['name']}")
        retriever.close()


if __name__ == "__main__":
    main()
