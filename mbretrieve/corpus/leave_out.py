"""What a walk leaves out whatever the ignore files say: tables of names, and the few questions asked of them."""

import re
from collections.abc import Callable, Collection

MIB = 1 << 20
TEXT_LIMIT = 2 * MIB
# Formats whose files are rightly larger than a source file. JSON lines are read row by row: their size costs nothing.
_LIMITS = {".pdf": 64 * MIB, ".ipynb": 16 * MIB, ".jsonl": None, ".jsonl.gz": None, ".ndjson": None}
_LIMITED = tuple(_LIMITS)

_REPOSITORY_INTERNALS = frozenset({".git", ".hg", ".svn", ".bzr", ".jj", "CVS"})

_VENDORED = frozenset(
    {
        *("node_modules", "bower_components", "jspm_packages", "vendor", "third_party", "third-party", "thirdparty"),
        *("site-packages", "dist-packages", "__pypackages__", ".venv", "venv", ".tox", ".nox", ".eggs"),
        *("Pods", "elm-stuff", "_deps"),
    }
)
_MADE = frozenset(
    {
        *("__pycache__", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "htmlcov"),
        *(".gradle", ".terraform", ".next", ".nuxt", "DerivedData", "CMakeFiles"),
    }
)
# A file that marks its folder as something a tool made: https://bford.info/cachedir/ and PEP 405.
_MARKERS = ("CACHEDIR.TAG", "pyvenv.cfg")
# What each index of ours has from its first moment. Its files change with every commit: read, it would never be up to
# date with itself.
_INDEX = ("catalog.sqlite", "lock")

_PYTHON = ("pyproject.toml", "setup.py", "setup.cfg")
_NODE = ("package.json",)
_JAVA = ("pom.xml", "build.gradle", "build.gradle.kts", "build.sbt")
# Names that are artefacts only beside the file of the tool that writes them: `build` and `dist` are sources elsewhere.
_ARTEFACTS = {
    "build": (*_PYTHON, *_NODE, *_JAVA, "CMakeLists.txt", "meson.build", "configure.ac", "_build"),
    "dist": (*_PYTHON, *_NODE),
    "out": (*_NODE, *_JAVA),
    "target": (*_JAVA, "Cargo.toml"),
    "_build": (*_PYTHON, "conf.py", "index.rst", "rebar.config", "mix.exs", "dune-project"),
    "coverage": _NODE,
}

_LOCK_FILES = frozenset(
    {
        *(
            "package-lock.json",
            "npm-shrinkwrap.json",
            "yarn.lock",
            "pnpm-lock.yaml",
            "bun.lock",
            "bun.lockb",
            "deno.lock",
        ),
        *("poetry.lock", "uv.lock", "pdm.lock", "pixi.lock", "Pipfile.lock", "conda-lock.yml", "Cargo.lock", "go.sum"),
        *(
            "Gemfile.lock",
            "composer.lock",
            "mix.lock",
            "pubspec.lock",
            "Podfile.lock",
            "Package.resolved",
            "flake.lock",
        ),
        *("packages.lock.json", "gradle.lockfile", ".terraform.lock.hcl", "MODULE.bazel.lock", "buf.lock"),
    }
)

_SECRET = re.compile(
    r"\.env(?:\..+|rc)?|.+\.env|id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?|.+\.(?:pem|key|p12|pfx|jks|keystore|ppk|kdbx|asc|gpg)"
    r"|\.(?:netrc|pgpass|npmrc|pypirc|htpasswd|dockercfg|git-credentials|vault-token)|_netrc|secrets?\.(?:ya?ml|json|toml)"
    r"|credentials(?:\.json)?|service[-_]account.*\.json|terraform\.tfstate(?:\.backup)?|.+\.tfvars",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r".*\.(?:example|sample|template|dist|defaults?)", re.IGNORECASE)

_MINIFIED = re.compile(r".+[.-](?:min|bundle)\.(?:m?js|css|cjs)|.+\.(?:js|css|mjs)\.map", re.IGNORECASE)

_BINARY = frozenset(
    re.findall(
        r"\w+",
        """
    png jpg jpeg gif bmp ico icns webp avif tif tiff psd ai eps xcf heic raw cr2 dds exr hdr
    mp3 mp4 m4a m4v wav ogg oga ogv flac aac avi mov mkv webm wmv mid midi
    zip gz bz2 xz zst lz4 7z rar tar tgz tbz2 txz jar war ear whl egg gem nupkg deb rpm apk ipa dmg iso img msi cab crx
    exe dll so dylib a o obj lib ko elf pdb pyc pyo pyd class dex wasm bc node
    ttf otf woff woff2 eot
    npy npz pkl pickle joblib pt pth ckpt safetensors onnx tflite pb h5 hdf5 gguf ggml bin mlmodel msgpack
    parquet arrow feather orc avro sqlite sqlite3 db mdb rdb lmdb faiss
    doc docx xls xlsx ppt pptx odt ods odp epub mobi djvu
    blend fbx glb stl 3ds dwg unitypackage uasset swf fla
        """,
    )
)


def byte_limit(name: str, chosen: int | None) -> int | None:
    """Return the most bytes a file of this name may have: what was chosen, else its format's; None is any size."""
    if chosen is not None:
        return chosen
    lower = name.lower()
    if not lower.endswith(_LIMITED):
        return TEXT_LIMIT
    return next(limit for suffix, limit in _LIMITS.items() if lower.endswith(suffix))


def is_internal(name: str) -> bool:
    """Tell whether a folder belongs to a version control system: never read, and not worth a word either."""
    return name in _REPOSITORY_INTERNALS


def is_secret(name: str) -> bool:
    """Tell whether a file name is that of a key, a password store or an environment file with values in it."""
    return _SECRET.fullmatch(name) is not None and _NO_SECRET.fullmatch(name) is None


def folder_reason(name: str, siblings: Collection[str], holds: Callable[[str], bool]) -> str | None:
    """Return why a folder is left out, or None; ``siblings`` are the names beside it, ``holds`` asks for one in it."""
    if name in _VENDORED or name.endswith((".egg-info", ".dist-info", ".xcodeproj", ".framework")):
        return "vendored"
    beside = any(sibling in siblings for sibling in _ARTEFACTS.get(name, ()))
    if beside or name in _MADE or any(holds(marker) for marker in _MARKERS):
        return "build artefact"
    return "index" if all(holds(name) for name in _INDEX) else None


def file_reason(name: str) -> str | None:
    """Return why a file is left out for its name alone, or None."""
    if name in _LOCK_FILES:
        return "lock file"
    if name.lower().endswith(".jsonl.gz"):
        return None
    if name.rpartition(".")[2].lower() in _BINARY and "." in name:
        return "binary"
    return "minified" if _MINIFIED.fullmatch(name) else None
