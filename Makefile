# Everything this project does, one command each.  `make help` lists them.
#
#   make ablations        from nothing to verdicts and the built book
#   make test             from nothing to passed tests
#
# Both create the environment in .venv first.  To use an environment of your own (conda, a container):
#   make test PYTHON=python

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BUDGET ?= standard
SOURCE ?= $(or $(HSETVAE_PHYSIONET2012),https://physionet.org/files/challenge-2012/1.0.0/)
SETS ?= a,b
CHROMIUM ?= $(firstword $(shell command -v chromium chromium-browser google-chrome))
HTML := book/_build/html
JUPYTER_BOOK := jupyter-book build book -W -n --keep-going

# Two processes with default threads each run an order of magnitude slower than with one thread each,
# and results are identical only at a fixed number of threads.
export OMP_NUM_THREADS ?= 1

ifdef PYTHON
ENVIRONMENT :=
export PATH := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$(PATH)
else
ENVIRONMENT := .venv/.installed
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif

# Progress bars are for terminals, not for published pages.
book pdf: export TQDM_DISABLE = 1

.PHONY: help ablations register test test-slow env book lab smoke data bench lint clean pdf

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

ablations: $(ENVIRONMENT)  ## run the ablation suite on the simulated cohort, build the book, print the verdicts
	hsetvae study run --budget $(BUDGET)
	$(MAKE) book
	hsetvae study report --budget $(BUDGET)
	@echo "The book: $(CURDIR)/$(HTML)/index.html"

register: $(ENVIRONMENT)  ## run every other design of the study, over all claims (two to three hours on two cores)
	@failed=0; for design in controls add leave roadmap; do \
	  hsetvae study run --design $$design || failed=1; done; hsetvae study report; exit $$failed

test: $(ENVIRONMENT)  ## run the tests, without the slow ones
	pytest -n 2 -m "not slow"

test-slow: $(ENVIRONMENT)  ## run the slow tests: whole studies, books and trainings, kills among them (10 minutes)
	pytest -n 2 -m slow

env: $(ENVIRONMENT)  ## create the environment in .venv and nothing else

book: $(ENVIRONMENT)  ## build the book from scratch; every page is executed, every warning is an error
	rm -rf book/_build
	$(JUPYTER_BOOK)

lab: $(ENVIRONMENT)  ## open JupyterLab: every page of the book and ablations/run.ipynb run as notebooks
	JUPYTER_CONFIG_PATH="$(CURDIR)/book/_lab" jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/book

smoke: $(ENVIRONMENT)  ## run the ablation suite at its smallest, to see that it runs (about a minute)
	hsetvae study run --budget smoke

data: $(ENVIRONMENT)  ## fetch Challenge 2012 and write data/physionet2012.parquet (SOURCE=folder or address, SETS=a,b,c)
	hsetvae data physionet2012 --source $(SOURCE) --sets $(SETS) --out data/physionet2012.parquet

bench: $(ENVIRONMENT)  ## measure speed on this machine, a few minutes (TABLE=an event table instead of simulated stays)
	python ablations/bench.py speed $(TABLE)

lint: $(ENVIRONMENT)  ## check style
	ruff check
	ruff format --check

pdf: $(ENVIRONMENT)  ## print the whole book to book/_build/hsetvae.pdf (needs Chromium)
	@test -n "$(CHROMIUM)" || { echo "make pdf prints with Chromium: install it or say where it is, CHROMIUM=/path"; exit 1; }
	rm -rf book/_build
	$(JUPYTER_BOOK) --builder singlehtml
	"$(CHROMIUM)" --headless --no-sandbox --disable-gpu --virtual-time-budget=60000 --no-pdf-header-footer \
	  --print-to-pdf=book/_build/hsetvae.pdf book/_build/singlehtml/index.html 2>/dev/null
	@echo "The book as a PDF: $(CURDIR)/book/_build/hsetvae.pdf"

clean:  ## delete what was built: the book, runs, caches (not .venv, not data/)
	rm -rf book/_build ablations/runs runs build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# torch comes first and alone, so that the build that suits this machine is found and nothing pulls another.
.venv/.installed: pyproject.toml constraints.txt
	@for python in python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	    echo "$$($$python --version) in .venv"; $$python -m venv .venv; break; fi; done
	@test -x .venv/bin/python || { echo "hsetvae needs Python 3.11, 3.12 or 3.13 on the PATH"; exit 1; }
	@echo "installing the tested versions into .venv: once, a few minutes"
	.venv/bin/pip install -q -c constraints.txt torch
	.venv/bin/pip install -q -c constraints.txt -e '.[book,test]'
	@touch $@
