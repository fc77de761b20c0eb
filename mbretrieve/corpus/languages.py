"""The programming languages that are cut into functions and classes: one table, read by the one loop of `code`.

Each row names the grammar's nodes, as its wheel's node-types.json spells them. A node of another type is looked into
for definitions if it spans several lines, so that functions inside `if`, `#ifdef`, `export` or a call are found without
being listed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import tree_sitter

ScopeKind = Literal["class", "impl", "module"]
"""class: its header is a unit and its functions are methods; impl: only the latter; module: neither."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A node that names what it holds, as `const f = () => ...` does: the fields of the name and of the value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Language:
    """How one language spells what a unit is made of."""

    name: str
    package: str
    functions: frozenset[str]
    scopes: Mapping[str, ScopeKind]
    suffixes: tuple[str, ...]
    entry: str = "language"  # the function of the package that gives the grammar
    file_names: tuple[str, ...] = ()
    interpreters: tuple[str, ...] = ()
    leading: frozenset[str] = frozenset({"comment"})  # what belongs to the definition below it
    wrappers: frozenset[str] = frozenset()  # what begins where the definition inside it should
    assigned: Mapping[str, Assigned] = field(default_factory=dict)
    function_values: frozenset[str] = frozenset()
    object_values: frozenset[str] = frozenset()
    bodiless: frozenset[str] = frozenset()  # what defines without a `body` field; any other node then only declares


_COMMENTS = frozenset({"line_comment", "block_comment"})
_JS_FUNCTIONS = frozenset({"function_declaration", "generator_function_declaration", "method_definition"})
_JS_VALUES = frozenset({"arrow_function", "function_expression", "generator_function"})
_JS_WRAPPERS = frozenset({"export_statement", "lexical_declaration", "variable_declaration", "expression_statement"})
_JS_ASSIGNED = {
    "variable_declarator": Assigned("name", "value"),
    "assignment_expression": Assigned("left", "right"),
    "pair": Assigned("key", "value"),
}
_JS_OBJECTS = frozenset({"object", "class"})
_TS_SCOPES: dict[str, ScopeKind] = {
    "class_declaration": "class",
    "abstract_class_declaration": "class",
    "interface_declaration": "class",
    "enum_declaration": "class",
    "internal_module": "module",
    "module": "module",
}


def _typescript(name: str, suffixes: tuple[str, ...]) -> Language:
    return Language(
        name,
        "tree_sitter_typescript",
        functions=_JS_FUNCTIONS,
        scopes=_TS_SCOPES,
        suffixes=suffixes,
        entry=f"language_{name}",
        interpreters=("ts-node", "deno", "tsx") if name == "typescript" else (),
        leading=frozenset({"comment", "decorator", "function_signature", "method_signature"}),
        wrappers=_JS_WRAPPERS | {"ambient_declaration"},
        assigned={**_JS_ASSIGNED, "public_field_definition": Assigned("name", "value")},
        function_values=_JS_VALUES,
        object_values=_JS_OBJECTS,
    )


LANGUAGES = (
    Language(
        "python",
        "tree_sitter_python",
        functions=frozenset({"function_definition"}),
        scopes={"class_definition": "class"},
        suffixes=(".py", ".pyi", ".pyw"),
        file_names=("SConstruct", "SConscript", "wscript"),
        interpreters=("python", "python2", "python3", "pypy3"),
        leading=frozenset({"comment", "decorator"}),
        wrappers=frozenset({"decorated_definition"}),
    ),
    Language(
        "javascript",
        "tree_sitter_javascript",
        functions=_JS_FUNCTIONS,
        scopes={"class_declaration": "class"},
        suffixes=(".js", ".jsx", ".mjs", ".cjs"),
        interpreters=("node", "nodejs", "bun"),
        leading=frozenset({"comment", "decorator"}),
        wrappers=_JS_WRAPPERS,
        assigned={**_JS_ASSIGNED, "field_definition": Assigned("property", "value")},
        function_values=_JS_VALUES,
        object_values=_JS_OBJECTS,
    ),
    _typescript("typescript", (".ts", ".mts", ".cts")),
    _typescript("tsx", (".tsx",)),
    Language(
        "java",
        "tree_sitter_java",
        functions=frozenset({"method_declaration", "constructor_declaration", "compact_constructor_declaration"}),
        scopes={
            "class_declaration": "class",
            "interface_declaration": "class",
            "enum_declaration": "class",
            "record_declaration": "class",
            "annotation_type_declaration": "class",
        },
        suffixes=(".java",),
        leading=_COMMENTS,
    ),
    Language(
        "go",
        "tree_sitter_go",
        functions=frozenset({"function_declaration", "method_declaration"}),
        scopes={"type_spec": "class"},
        suffixes=(".go",),
        wrappers=frozenset({"type_declaration"}),
        bodiless=frozenset({"type_spec"}),
    ),
    Language(
        "rust",
        "tree_sitter_rust",
        functions=frozenset({"function_item", "macro_definition"}),
        scopes={
            "struct_item": "class",
            "enum_item": "class",
            "union_item": "class",
            "trait_item": "class",
            "impl_item": "impl",
            "mod_item": "module",
        },
        suffixes=(".rs",),
        leading=_COMMENTS | {"attribute_item"},
        bodiless=frozenset({"macro_definition"}),
    ),
    Language(
        "c",
        "tree_sitter_c",
        functions=frozenset({"function_definition"}),
        scopes={"struct_specifier": "class", "union_specifier": "class", "enum_specifier": "class"},
        suffixes=(".c",),
        assigned={"type_definition": Assigned("declarator", "type")},
        object_values=frozenset({"struct_specifier", "union_specifier", "enum_specifier"}),
    ),
    Language(
        "cpp",
        "tree_sitter_cpp",
        functions=frozenset({"function_definition"}),
        scopes={
            "class_specifier": "class",
            "struct_specifier": "class",
            "union_specifier": "class",
            "enum_specifier": "class",
            "namespace_definition": "module",
            "linkage_specification": "module",
        },
        # A header in C parses as C++; the reverse fails at its first class.
        suffixes=(".cc", ".cpp", ".cxx", ".c++", ".h", ".hh", ".hpp", ".hxx", ".inl", ".ipp", ".cu", ".cuh", ".ino"),
        wrappers=frozenset({"template_declaration"}),
        assigned={"type_definition": Assigned("declarator", "type")},
        object_values=frozenset({"struct_specifier", "union_specifier", "enum_specifier", "class_specifier"}),
    ),
    Language(
        "csharp",
        "tree_sitter_c_sharp",
        functions=frozenset(
            {
                "method_declaration",
                "constructor_declaration",
                "destructor_declaration",
                "operator_declaration",
                "conversion_operator_declaration",
                "local_function_statement",
            }
        ),
        scopes={
            "class_declaration": "class",
            "struct_declaration": "class",
            "interface_declaration": "class",
            "record_declaration": "class",
            "enum_declaration": "class",
            "namespace_declaration": "module",
        },
        suffixes=(".cs", ".csx"),
    ),
    Language(
        "ruby",
        "tree_sitter_ruby",
        functions=frozenset({"method", "singleton_method"}),
        scopes={"class": "class", "module": "module", "singleton_class": "impl"},
        suffixes=(".rb", ".rake", ".gemspec", ".ru"),
        file_names=("Rakefile", "Gemfile", "Guardfile", "Vagrantfile", "Podfile", "Fastfile"),
        interpreters=("ruby", "jruby"),
        bodiless=frozenset({"method", "singleton_method", "class", "module", "singleton_class"}),
    ),
    Language(
        "php",
        "tree_sitter_php",
        functions=frozenset({"function_definition", "method_declaration"}),
        scopes={
            "class_declaration": "class",
            "interface_declaration": "class",
            "trait_declaration": "class",
            "enum_declaration": "class",
            "namespace_definition": "module",
        },
        suffixes=(".php", ".phtml", ".php8", ".inc.php"),
        entry="language_php",
        interpreters=("php",),
    ),
    Language(
        "bash",
        "tree_sitter_bash",
        functions=frozenset({"function_definition"}),
        scopes={},
        suffixes=(".sh", ".bash", ".ksh", ".bats", ".zsh"),
        file_names=(".bashrc", ".bash_profile", ".profile", ".zshrc", "PKGBUILD"),
        interpreters=("sh", "bash", "dash", "ksh", "zsh"),
    ),
)

BY_SUFFIX = {suffix: language for language in LANGUAGES for suffix in language.suffixes}
BY_FILE_NAME = {name: language for language in LANGUAGES for name in language.file_names}
BY_INTERPRETER = {name: language for language in LANGUAGES for name in language.interpreters}


@cache
def grammar(language: Language) -> "tree_sitter.Language":
    """Load a language's grammar, when the first file of that language is cut."""
    import tree_sitter

    return tree_sitter.Language(getattr(import_module(language.package), language.entry)())
