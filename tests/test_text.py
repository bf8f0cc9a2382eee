"""What the texts promise holds: commands exist, versions agree, pages and modules keep the rules of the house."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from packaging.requirements import Requirement

import hsetvae
from hsetvae.cli import app
from hsetvae.config import Config
from hsetvae.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]
TRACKED = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    if (ROOT / name).is_file()
]
PAGES = [page for page in TRACKED if page.suffix == ".md" and page.is_relative_to(ROOT / "book")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# A module may import from the lines above its own and from nothing else.
LAYERS = [
    {"config"},
    {"challenge", "files", "toml", "measures", "optim", "progress", "scores", "statistics", "plots"},
    {"cohort", "download", "jobs", "readme", "tables"},
    {"data"},
    {"attention"},
    {"summary"},
    {"mapped", "setvae", "history", "decoders", "stays"},
    {"baselines", "gather", "hints"},
    {"events"},
    {"simulate", "physionet", "controls", "model"},
    {"objective", "runs", "teacher"},
    {"evaluate"},
    {"generate", "observe", "calibration"},
    {"diagnostics", "explain", "skill"},
    {"advice", "declaration"},
    {"monitor", "report", "designs"},
    {"train"},
    {"entrants", "study"},
    {"lineup"},
    {"suite", "sweep", "verdicts"},
    {"confirm", "standings"},
    {"data_cli", "study_cli"},
    {"api", "cli"},
]


def commands(path: Path) -> list[str]:
    """Lines of the code blocks of a text that call make or hsetvae, with continued lines joined."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", path.read_text(), flags=re.M | re.S)
    plain = "\n".join(code for kind, code in blocks if kind in ("", "bash", "console"))
    lines = plain.replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:make|hsetvae) [^`]+)`", path.read_text())
    return [line.split("#")[0].strip(" $") for line in lines + inline if re.match(r"[ $]*(make|hsetvae) ", line)]


TEXTS = [p for p in TRACKED if p.suffix == ".md"]


def test_every_make_command_in_the_texts_is_a_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    asked = {
        (text.name, word)
        for text in TEXTS
        for line in commands(text)
        if line.startswith("make ")
        for word in line.split()[1:]
        if re.fullmatch(r"[a-z-]+", word)
    }
    assert {"ablations", "test"} <= {word for _, word in asked}
    assert not {(text, word) for text, word in asked if word not in targets}


@pytest.mark.parametrize("text", [p for p in TEXTS if any(c.startswith("hsetvae") for c in commands(p))], ids=str)
def test_every_hsetvae_command_in_the_texts_exists_with_its_options(text):
    for line in commands(text):
        if not line.startswith("hsetvae "):
            continue
        command, words = typer.main.get_command(app), line.split()[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), f"{text.name}: `{line}` names no command"
        options = {option for parameter in command.params for option in parameter.opts}
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in options]
        assert not unknown, f"{text.name}: `{line}` has no option {unknown}"


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.search(r"^\.PHONY: (.*)", makefile, flags=re.M)[1].split():
        assert f"make {target}" in listed


def test_notebooks_in_git_store_no_outputs():
    for notebook in (p for p in TRACKED if p.suffix == ".ipynb"):
        for cell in json.loads(notebook.read_text())["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None, notebook.name


def test_the_run_notebooks_parameters_are_settings_or_explained():
    cells = json.loads((ROOT / "ablations" / "run.ipynb").read_text())["cells"]
    parameters = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
    code = "".join(parameters["source"])
    names = {node.target.id if isinstance(node, ast.AnnAssign) else node.targets[0].id for node in ast.parse(code).body}
    settings = {name for name, *_ in Config.describe()}
    for name in names - settings:
        assert re.search(rf"^{name}\b.*#", code, flags=re.M), f"parameter {name} is no setting and has no comment"


def test_no_text_names_a_machine_or_its_tools():
    folders = [f"/{name}/" for name in ("work", "root", "home", "Users")]
    words = [*folders, "bash" + "_jobs", r"\." + "library", "shared" + "/"]  # in parts: this file is read too
    found = [
        (path.name, match[0])
        for path in TRACKED
        if path.suffix not in {".parquet", ".png"}
        if (match := re.search("|".join(words), path.read_text(errors="ignore")))
    ]
    assert not found


def test_imports_go_one_way():
    level = {module: i for i, layer in enumerate(LAYERS) for module in layer}
    for path in (ROOT / "hsetvae").glob("*.py"):
        if path.stem == "__init__":
            continue
        assert path.stem in level, f"{path.name} has no place in the order of imports"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                assert level[node.module] < level[path.stem], f"{path.name} imports {node.module}"


def test_every_python_file_fits_in_a_readers_head():
    long = {p.name: n for p in TRACKED if p.suffix == ".py" and (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == hsetvae.__version__
    assert citation["license"] == PROJECT["license"] == "MIT"


def test_every_requirement_has_one_tested_version_that_it_allows():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["book"], *extras["peers"], *extras["test"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text


def test_conda_takes_everything_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert {line.split()[0] for line in conda} == {"python", "pip"}
    assert pip["pip"] == ["-c constraints.txt", "-e .[book,test]"]


# --- the book's sources ----------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """The page without its header, code, tables and formulas."""
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(), flags=re.S)
    text = re.sub(r"^(`{3,})(?!\{glossary).*?^\1$", "", text, flags=re.M | re.S)
    text = re.sub(r"^\$\$.*?^\$\$$", "", text, flags=re.M | re.S)
    return re.sub(r"^\|.*$", "", text, flags=re.M)


def test_every_page_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    assert sorted(files) == sorted(str(page.relative_to(ROOT / "book").with_suffix("")) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_one_sentence_a_line(page):
    two = [line for line in prose(page).splitlines() if re.search(r"[a-z)]\. [A-Z]", line)]
    assert not two


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "ablations"], ids=lambda page: page.stem)
def test_results_are_computed_and_not_typed(page):
    results = prose(page).split("## Result", 1)[1].split("## Exercises")[0]
    assert not re.findall(r"\d+\.\d+|\d+ ?%", results.replace("95 % interval", ""))


@pytest.mark.parametrize("page", [p for p in PAGES if "{code-cell}" in p.read_text()], ids=lambda page: page.stem)
def test_a_page_with_code_is_executed_and_says_where_its_numbers_come_from(page):
    text = page.read_text()
    assert text.startswith("---\njupytext:"), "without this header the page is not executed"
    assert "provenance(" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_drawn_figure_has_alt_text_and_a_caption(page):
    for cell in re.findall(r"^```\{code-cell\}.*?^```$", page.read_text(), flags=re.M | re.S):
        if "plt.subplots(" in cell and "explorer(" not in cell:  # an explorer takes a text with each of its figures
            assert "alt:" in cell and "caption:" in cell


def test_the_glossary_is_in_order_and_knows_every_variable_of_the_pages():
    lists = re.findall(r"```\{glossary\}\n(.*?)```", (ROOT / "book" / "glossary.md").read_text(), flags=re.S)
    terms = [[line for line in text.splitlines() if line and line[0] != " "] for text in lists]
    for one in terms:
        assert one == sorted(one, key=str.lower)
    variables = set(simulate(stays=1).cohort.variables)
    variables |= set(pd.read_csv(ROOT / "ablations" / "results" / "challenge2012_skill.csv")["variable"])
    assert variables <= {term for one in terms for term in one}


@pytest.mark.parametrize("page", [p for p in PAGES if "{code-cell}" in p.read_text()], ids=lambda page: page.stem)
def test_what_a_reader_may_change_stands_at_the_top_of_the_page_and_is_used_below(page):
    cells = re.findall(r"^```\{code-cell\}.*?^```$", page.read_text(), flags=re.M | re.S)
    assert ":tags: [parameters" in cells[1], "after the imports comes the cell of parameters"
    assert sum(":tags: [parameters" in cell for cell in cells) == 1
    names = [name for line in re.findall(r"^([\w, ]+) = ", cells[1], flags=re.M) for name in line.split(", ")]
    below = "\n".join(cells[2:])
    assert names and all(re.search(rf"\b{name}\b", below) for name in names)
    assert all("#" in line for line in re.findall(r"^\w+ = .*", cells[1], flags=re.M) if not line.startswith("seed"))
