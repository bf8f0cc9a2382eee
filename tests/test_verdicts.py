"""One table of verdicts: the same for the terminal, the book and the README, and never typed."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsetvae.cli import app
from hsetvae.config import UserError
from hsetvae.declaration import load_study
from hsetvae.designs import expand
from hsetvae.readme import READMES, chinese, marks, with_section
from hsetvae.standings import as_markdown as as_table
from hsetvae.statistics import compare, verdict
from hsetvae.study import AT_A_BOUND, load_records, publish, runs_folder
from hsetvae.suite import fitting, load_suite, published_rows
from hsetvae.sweep import jobs_of, write_record
from hsetvae.verdicts import (
    COLUMNS,
    NOT_RUN,
    as_text,
    publish_verdicts,
    sections,
    tally,
    verdicts,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The declared study with few questions, in a project of its own with a README."""
    kept = ("beta", "pooling", "head", "dead_units")
    tables = (ROOT / "ablations" / "study.toml").read_text().split("\n[")
    tables = [t for t in tables if not t.startswith("questions.") or t.split("]")[0].split(".")[1] in kept]
    text = "\n[".join(tables).replace('"position", "pooling", "clipping"]', '"pooling"]')
    before, _, after = text.partition("path = [")
    text = f'{before}path = ["beta", "pooling"]{after.partition("]")[2]}'
    folder = tmp_path / "ablations"
    folder.mkdir()
    (folder / "study.toml").write_text(text.replace("replicates = 10", "replicates = 7"))
    for name in ("run.ipynb", "ledger.csv"):
        shutil.copy(ROOT / "ablations" / name, folder)
    for name in READMES:
        between = "\n".join(mark for section in ("findings", "verdicts") for mark in marks(section))
        (tmp_path / name).write_text(f"# Mine\n\n{between}\n\n## After\n")
    monkeypatch.delenv("HSETVAE_RUNS", raising=False)
    return load_study(folder / "study.toml")


def run_made_up(study, design, value, budget=""):
    """Write the records that real runs of a design would leave; `value(spec)` is each of their measures."""
    specs = expand(study, budget, design)
    jobs = {job["facts"]["id"]: job for job in jobs_of(study, specs)}
    for spec in specs:
        (runs_folder(study) / spec.id).mkdir(parents=True, exist_ok=True)
        measured = dict.fromkeys(study.endpoints, value(spec)) | {"auroc_of_truth": 0.9}
        write_record(jobs[spec.id], "finished", "", 1.0, measured)


def lift(spec) -> float:
    noise = np.random.default_rng([spec.replicate, len(spec.arm.name)]).normal(0, 1e-3)
    return 0.1 * spec.replicate + ("beta" in spec.arm.name) - 0.5 * ("head" in spec.arm.name) + noise


def test_every_row_of_the_ledger_is_in_the_table_and_starts_as_not_yet_run(study):
    table = verdicts(study)
    ledger = pd.read_csv(study.folder / "ledger.csv")
    assert set(table["row"]) - {""} == set(ledger["id"])
    judged = table[table["judged by"].str.contains(", ")]
    assert set(judged["verdict"]) == {NOT_RUN} and len(judged) == 3 + len(study.controls) + 3  # three rows name beta


def test_verdicts_follow_from_the_records_of_the_design_that_judges(study):
    run_made_up(study, "factorial", lift)
    table = verdicts(study).set_index("judged by")
    assert set(table.loc["beta, factorial", "verdict"]) == {"supported"}
    assert table.loc["head, add", "verdict"] == NOT_RUN
    run_made_up(study, "add", lift)
    table = verdicts(study).set_index("judged by")
    head = table.loc["head, add"]
    assert head["verdict"] == "refuted: harmful" and head["n"] == "7" and head["data"] == "simulated, 1500 stays"
    assert head["effect"].startswith("auroc -0.5 [")
    assert table.loc["dead_units, add", "effect"].endswith("beyond 0.5")
    assert "beta, add" not in table.index, "a crossed factor has one verdict"
    run_made_up(study, "factorial", lift, "smoke")
    small = verdicts(study, "smoke").set_index("judged by")
    assert set(small.loc["beta, factorial", "data"]) == {"simulated, 150 stays"}, "of the budget"


def test_publishing_writes_one_table_for_the_readme_and_the_book(study):
    run_made_up(study, "factorial", lift)
    run_made_up(study, "add", lift)
    assert publish(study, design="factorial")[0].name == "standard.csv"
    assert publish(study, design="add")[0].name == "register.csv"
    written = publish_verdicts(study)
    assert [path.name for path in written] == ["verdicts.csv", "README.md", "README.zh.md"]
    readme = written[1].read_text()
    table = verdicts(study)
    assert all(part in readme for part in sections(study, table).values())
    assert readme.startswith("# Mine") and readme.endswith("## After\n")
    assert publish_verdicts(study) and written[1].read_text() == readme, "writing twice changes nothing"
    for line in (row for row in table.to_dict("records") if row["verdict"] != NOT_RUN):
        assert line["claim"] in readme and line["verdict"] in readme and line["verdict"] in as_text(table)
    shutil.rmtree(runs_folder(study))
    assert verdicts(study).equals(table), "records say the same as runs"


def test_verdicts_on_another_table_go_to_a_file_of_their_own(study, tmp_path):
    (tmp_path / "mine.csv").write_text("stay,hours,variable,value,outcome\na,0,x,1,0\n")
    mine = load_study(study.folder / "study.toml", str(tmp_path / "mine.csv"))
    readme = (tmp_path / "README.md").read_text()
    assert publish_verdicts(mine, "standard") == [], "nothing was judged"
    run_made_up(mine, "factorial", lift, "register")
    (written,) = publish_verdicts(mine, "register")
    assert written.name == "mine-register-verdicts.csv" and (tmp_path / "README.md").read_text() == readme
    table = pd.read_csv(written)
    assert set(table["judged by"]) == {"beta, factorial", "pooling, factorial"}
    assert set(table["data"]) == {"mine"} and set(table["n"]) == {7}


def test_a_declared_table_speaks_on_the_line_after_the_claim(study, tmp_path, capsys):
    run_made_up(study, "factorial", lift)
    publish(study)
    alone = verdicts(study)
    table = tmp_path / "data" / "physionet2012.parquet"
    table.parent.mkdir()
    table.write_text("what is in it is known by its hash")
    there = study.on(study.tables["physionet2012"].source)
    assert there.design("factorial").budget == "challenge2012" and study.design("factorial").budget == "standard"
    run_made_up(there, "factorial", lift)
    with pytest.raises(SystemExit) as end:
        app(["study", "publish", "--study", str(study.folder / "study.toml"), "--data", str(table)])
    assert end.value.code in (None, 0) and "README.md" in capsys.readouterr().out
    shutil.rmtree(runs_folder(study))
    both = verdicts(study)
    table.write_text("other content")
    assert verdicts(study).equals(alone), "records of other content are stale"
    table.unlink()
    assert verdicts(study).equals(both), "published records can be read where the table is not"
    others = both["data"] == "physionet2012"
    assert both[~others].reset_index(drop=True).equals(alone) and set(both[others]["judged by"]) == {
        "beta, factorial", "pooling, factorial"
    }  # fmt: skip
    for line in both.index[others]:
        assert both.loc[line, "claim"] == both.loc[line - 1, "claim"] and both.loc[line, "n"] == "6"
    assert tally(both) == f"{tally(alone)} On physionet2012: {tally(both[others])}"


def test_the_chinese_readme_has_the_same_rows_effects_and_claims(study):
    run_made_up(study, "factorial", lift)
    run_made_up(study, "add", lift)
    publish_verdicts(study)
    texts = [(study.folder.parent / name).read_text().partition(marks("verdicts")[0])[2] for name in READMES]
    english, translated = ([line.split(" | ") for line in text.splitlines() if line[:1] == "|"] for text in texts)
    assert len(english) == len(translated) > 5
    for one, other in zip(english[2:], translated[2:], strict=True):
        assert one[:2] == other[:2] and one[4] == other[4], "row, claim and n are the same"
        assert re.findall(r"[+-][\d.]+", one[3]) == re.findall(r"[+-][\d.]+", other[3]), "and so are the numbers"
        assert re.search("[\u4e00-\u9fff]", other[2])


@pytest.mark.parametrize(
    ("d", "direction", "failed"),
    [([1.0] * 8, 1, 0), ([1e-4] * 8, 1, 0), ([1.0] * 8, -1, 0), ([-1e-4, 1e-4] * 4, 1, 0), ([-9.0, 8.0] * 4, 1, 0),
     ([1.0, 2.0], 1, 0), ([1.0], 1, 0), ([1.0] * 8, 1, 0.5)],
)  # fmt: skip
def test_every_verdict_has_chinese_words_and_keeps_its_numbers(d, direction, failed):
    found = compare(np.array(d) + np.linspace(0, 1e-6, len(d)))
    words = verdict(replace(found, p_holm=found.p), direction, 0.01, failed)
    assert not re.search("[A-Za-z]{2}", chinese(words)), words
    assert set(re.findall(r"[\d.]+", words)) == set(re.findall(r"[\d.]+", chinese(words)))


@pytest.mark.parametrize(
    "words",
    [
        NOT_RUN,
        "not evaluable: no room to move (the reference is at 0.969)",
        "refuted: harmful on these splits only",
        "supported, below the size of interest on these splits only",
        "undecided at n=10 (no pair differs; 29 such replicates would refute it)",
        "not evaluable: an instrument, no arm",
        "refuted: the control does not hold",
        *AT_A_BOUND.values(),
    ],
)
def test_words_that_no_comparison_gives_have_chinese_too(words):
    assert not re.search(
        "[A-Za-z]{2}", chinese(words) + chinese(tally(pd.DataFrame([dict.fromkeys(COLUMNS, "") | {"verdict": words}])))
    )


def test_the_claims_of_the_crossed_factors_have_chinese_words_and_keep_their_numbers():
    declared = load_study(ROOT / "ablations" / "study.toml")
    for claim in (declared.questions[name].claim for name in declared.factorial):
        assert re.search("[\u4e00-\u9fff]", chinese(claim)), claim
        assert set(re.findall(r"[\d.]*\d", claim)) == set(re.findall(r"[\d.]*\d", chinese(claim)))


def test_publishing_a_design_keeps_the_records_of_the_others_and_each_run_once(study):
    run_made_up(study, "add", lift)
    publish(study, design="add")
    assert publish(study, design="leave")[1] > 0
    run_made_up(study, "leave", lift)
    shared = {s.id for s in expand(study, "", "add")} & {s.id for s in expand(study, "", "leave")}
    table = pd.read_csv(publish(study, design="leave")[0])
    assert shared and table["id"].is_unique
    wanted = {spec.id for design in ("add", "leave") for spec in expand(study, "", design)}
    assert set(table["id"]) == wanted
    assert len(load_records(study, design="add")) == len(expand(study, "", "add"))


def test_a_tally_counts_words_and_not_their_numbers():
    words = ["supported", "undecided at n=8 (could have seen 1; 20 replicates would show 1)", "undecided at n=10 (x)"]
    lines = [dict.fromkeys(COLUMNS, str(i)) | {"verdict": word} for i, word in enumerate(words)]
    again = lines[0] | {"row": "another row of the ledger"}
    assert tally(pd.DataFrame([*lines, again])) == "undecided: 2; supported: 1.", "a claim counts once"


def test_a_readme_without_marks_is_refused():
    with pytest.raises(UserError, match="lacks the marks"):
        with_section(f"# Mine\n{marks('verdicts')[0]}\n", "verdicts", "x")


@pytest.mark.parametrize(("name", "language"), READMES.items())
def test_a_readme_shows_the_published_verdicts(name, language):
    published = ROOT / "ablations" / "results" / "verdicts.csv"
    table = pd.read_csv(published, dtype=str, keep_default_na=False)
    text, study = (ROOT / name).read_text(), load_study(ROOT / "ablations" / "study.toml")
    suite = load_suite(str(ROOT / "ablations" / "challenge2012.toml"))
    rows = published_rows(suite)
    assert len(fitting(suite, rows, here=False)) == len(rows), "run and publish the suite: rows are stale"
    written = sections(study, table, language) | {suite.name: as_table(suite, rows, language)}
    for section, content in written.items():
        assert with_section(text, section, content) == text, "run `hsetvae study publish`, or with `--suite`"
