# make run      a demonstration: Zope, the daemon and an SMTP server of its own (ONCE=1: ends by itself)
# make test     sets up what the tests need, then runs them (ARGS="-k name" goes to pytest, and leaves out test-plone)
# make test-plone     the tests with Plone, in an environment of their own (ARGS as above)
# make fuzz     feeds the daemon's parsers with arbitrary mails, config files and replies (MINUTES=10)
# make bench    compares speed and memory with those of other programs that send mail
# make lint     ruff, mypy, shellcheck, the manual's markup, and that the source distribution is complete
# make dist     builds both distributions into dist, and checks what they say of themselves
# make test-matrix    all tests for each Python with each Zope and Plone of tox.ini whose interpreter is here (ARGS="-e py312-zope63")
# make clean    removes what the others made

PYTHON ?= python3
VENV := .venv
PLONE := .venv-plone
INSTALL := sh tests/support/debian_packages.sh
FOR_TESTS := chromium e2fsprogs iproute2 libsasl2-modules logrotate postfix sasl2-bin shellcheck strace systemd
SCRIPTS = .ci/run tests/support/debian_packages.sh $(filter-out %/README %.logrotate %.service,$(wildcard maildrop/bin/*))
# Beside the interpreters on the PATH: what pyenv has.
PYTHONS = $(wildcard $(shell pyenv root 2>/dev/null)/versions/3.*/bin/python)

.PHONY: run test test-plone test-matrix fuzz bench lint dist clean

run: $(VENV)/demo.stamp
	@$(VENV)/bin/python tests/support/demo.py $(if $(ONCE),--once) instance

test: $(VENV)/test.stamp
	@$(INSTALL) --optional $(FOR_TESTS)
	$(VENV)/bin/python -m pytest $(or $(ARGS),--numprocesses 2 --dist worksteal --least-fault-cases 400)
	$(if $(ARGS),,@$(MAKE) --no-print-directory test-plone)

test-plone: $(PLONE)/test-plone.stamp
	$(PLONE)/bin/python -m pytest tests/plone $(or $(ARGS),--numprocesses 2 --dist loadfile)

test-matrix: $(VENV)/matrix.stamp
	@$(INSTALL) --optional $(FOR_TESTS)
	$(VENV)/bin/tox run $(if $(PYTHONS),--discover $(PYTHONS)) $(ARGS)

lint: $(VENV)/lint.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck --shell=sh --external-sources $(SCRIPTS)
	for text in README CONTRIBUTING HISTORY; do $(VENV)/bin/docutils --halt=2 --strict $$text.txt /dev/null || exit; done
	$(VENV)/bin/check-manifest

dist: $(VENV)/lint.stamp
	rm -rf dist
	$(VENV)/bin/pyproject-build
	$(VENV)/bin/twine check --strict dist/*

fuzz: $(VENV)/test.stamp
	$(VENV)/bin/python -m pytest tests/fuzz --numprocesses 2 --dist worksteal --fuzz-minutes $(or $(MINUTES),10)

bench: $(VENV)/test.stamp
	@$(INSTALL) --optional iproute2 postfix
	$(VENV)/bin/python -m benchmarks.drain
	$(VENV)/bin/python -m benchmarks.drain --size 1000000 --mails 50 --latency-ms 0
	$(VENV)/bin/python -m benchmarks.scan
	$(VENV)/bin/python -m benchmarks.writer
	$(VENV)/bin/python -m benchmarks.memory
	$(VENV)/bin/python -m benchmarks.recovery
	$(VENV)/bin/python -m benchmarks.wakeup
	$(VENV)/bin/python -m benchmarks.hosts

# A virtual environment with an extra of pyproject.toml; the stamp is called like the extra
%.stamp: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is not Python 3.10 or newer: say make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(INSTALL) python3-venv
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(basename $(@F))]'
	@touch $@

clean:
	rm -rf $(VENV) $(PLONE) instance build dist *.egg-info .hypothesis .mypy_cache .ruff_cache .tox
