"""The public names: importable, documented, callable in the order of the command line, and cheap until used."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import hsetvae.api as api
from hsetvae.config import UserError

PAGE = (Path(__file__).resolve().parents[1] / "book" / "api" / "index.md").read_text()


def test_every_public_name_is_imported_explained_and_on_the_api_page():
    public = {name for name, thing in vars(api).items() if not name.startswith("_") and not inspect.ismodule(thing)}
    assert set(api.__all__) == public
    for name in api.__all__:
        assert f"`{name}`" in api.__doc__, f"the docstring does not place {name}"
        assert f"`{name}`" in PAGE, f"the table of the API page lacks {name}"
        described = rf"^(\.\. (auto\w+|py:data)::)? +hsetvae\.\w+\.{name}(\(.*\))?$"
        assert re.search(described, PAGE, flags=re.M), f"{name} is not described there"
        thing = getattr(api, name)
        assert inspect.getdoc(thing) if callable(thing) else name in ("BASELINE", "IMPROVED", "RECOMMENDED")


def test_help_of_the_package_leads_to_the_public_names():
    import hsetvae

    assert "hsetvae.api" in hsetvae.__doc__


def test_importing_the_package_or_its_command_line_does_not_load_torch():
    code = "import sys, hsetvae, hsetvae.cli; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_of_the_api_page_runs(tmp_path, monkeypatch):
    """On a small table and with a small model; otherwise as it stands on the page."""
    code = re.search(r"```python\n(.*?)```", PAGE, flags=re.S)[1]
    simulated = api.simulate(40, seed=1).cohort
    api.write_cohort(simulated, tmp_path / "events.parquet")
    outcomes = "".join(
        f"{stay},{outcome:.0f}\n" for stay, outcome in zip(simulated.stays, simulated.outcome, strict=True)
    )
    (tmp_path / "outcomes.csv").write_text(f"stay,outcome\n{outcomes}")
    code = code.replace("events.csv", "events.parquet")
    code = code.replace("epochs=5", "epochs=1, width=16, latent=4, feedforward=16, pretrain_epochs=0")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert found["scores"]["n"] == len(found["parts"].test) and "auroc" in found["scores"]
    assert found["report"].read_text().startswith("# Diagnosis of mine")


def test_what_the_user_can_put_right_is_one_kind_of_error():
    assert issubclass(api.UserError, ValueError) and api.UserError is UserError
