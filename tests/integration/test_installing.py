"""What gets installed, from every place it can come from."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from support.daemon import MaildropDaemon
from support.relay_server import RelayServer
from support.zope_site import ZopeSite

CHECKOUT = Path(__file__).parents[2]
SCRIPTS = ["start_maildrop", "stop_maildrop", "maildropctl", "maildrop-redhat", "maildrop-suse"]
EXPECTED = {
    "maildrop/config",
    "maildrop/SAMPLE_MAIL.txt",
    "maildrop/maildrop.py",
    "maildrop/bin/README",
    "maildrop/bin/find_python.sh",
    "maildrop/bin/maildrop.service",
    "maildrop/bin/maildrop.logrotate",
    "Products/MaildropHost/__init__.py",
    "Products/MaildropHost/configure.zcml",
    *(
        f"Products/MaildropHost/profiles/{profile}/{name}.xml"
        for profile in ("default", "uninstall")
        for name in ("browserlayer", "componentregistry", "toolset")
    ),
    "Products/MaildropHost/profiles/default/metadata.xml",
    "Products/MaildropHost/www/add.zpt",
    "Products/MaildropHost/www/edit.zpt",
    "Products/MaildropHost/www/log.zpt",
    *(f"maildrop/bin/{script}" for script in SCRIPTS),
}

TELL = """
import sys
from pathlib import Path
import maildrop.settings
from Products.MaildropHost.maildrop.stringparse import parse_assignments
module = sys.modules["Products.MaildropHost.MaildropHost"]
print(module.DEFAULT_CONFIG_PATH)
print(Path(maildrop.settings.__file__).parent)
print("Maildrop Host" in [meta["name"] for meta in app.all_meta_types()])
"""

SEND = """
import transaction
app.manage_addProduct["MaildropHost"].manage_addMaildropHost("MailHost")
app.MailHost.setConfigPath("config-path-1")
app.MailHost.send("It works.", mto="jane@example.com", mfrom="zope@example.com", subject="Hello")
transaction.commit()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project as git has it, so that building leaves nothing in the checkout."""
    directory = tmp_path_factory.mktemp("source") / "project"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, listed):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, directory / name)
    return directory


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """An sdist, and a wheel that was built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, source], check=True, capture_output=True)
    return out


def site_with(path: Path, tmp_path: Path) -> list[str]:
    """Start a Zope that finds the product on ``path`` and not in this environment; what TELL prints there."""
    bin_directory = Path(sys.executable).parent
    instance = tmp_path / "instance"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(path)
    subprocess.run(
        [bin_directory / "mkwsgiinstance", "-d", instance, "-u", "admin:admin"], check=True, capture_output=True, env=environment
    )
    script = tmp_path / "tell.py"
    without_checkout = f"import sys; sys.path[:] = [entry for entry in sys.path if entry != {str(CHECKOUT)!r}]\n"
    runner = "from Zope2.utilities.zconsole import main; main(['zconsole', 'run', *sys.argv[1:]])"
    script.write_text(TELL)
    done = subprocess.run(
        [sys.executable, "-c", without_checkout + runner, instance / "etc" / "zope.conf", script],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_wheel_holds_the_two_packages_config_pages_and_runnable_scripts(built):
    wheel, = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        top_level = {name.split("/")[0] for name in infos if ".dist-info" not in name}
        assert top_level == {"Products", "maildrop"}
        assert EXPECTED <= set(infos)
        assert "Products/__init__.py" not in infos
        assert any(name.endswith("licenses/LICENSE.txt") for name in infos)
        entry_points = next(name for name in infos if name.endswith("entry_points.txt"))
        assert "[z3c.autoinclude.plugin]\ntarget = plone" in archive.read(entry_points).decode()
        for script in SCRIPTS:
            assert infos[f"maildrop/bin/{script}"].external_attr >> 16 & 0o111 == 0o111, script
        assert archive.read("maildrop/config") == (CHECKOUT / "config").read_bytes()


def test_the_sdist_holds_all_that_is_needed_to_build_and_test(built, source):
    sdist, = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("config", "SAMPLE_MAIL.txt", "setup.py", "README.txt", "HISTORY.txt", "LICENSE.txt", "Makefile", "tox.ini"):
        assert name in names
    packaged = {path.relative_to(source).as_posix() for folder in ("maildrop", "Products", "tests")
                for path in (source / folder).rglob("*") if path.is_file()}
    assert packaged - names == set()


def test_what_the_distributions_say_of_themselves_can_be_shown_by_an_index(built):
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_zope_finds_the_product_of_an_installed_wheel_and_its_scripts_run(built, tmp_path):
    wheel, = built.glob("*.whl")
    target = tmp_path / "site packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel], check=True, capture_output=True
    )
    assert site_with(target, tmp_path) == [str(target / "maildrop" / "config"), str(target / "maildrop"), "True"]
    for script in SCRIPTS:
        assert os.access(target / "maildrop" / "bin" / script, os.X_OK)
    done = subprocess.run([target / "maildrop" / "bin" / "maildropctl", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "make-emails" in done.stdout


def test_in_a_new_environment_the_zope_of_a_wheel_sends_through_its_daemon(built, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    wheel, = built.glob("*.whl")
    constraints = tmp_path / "constraints.txt"    # the Zope that the tests run with, and what fits it
    versions = {each.metadata["Name"]: each.version for each in distributions()}
    del versions["Products.MaildropHost"]
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    install = [environment / "bin" / "pip", "install", "--quiet", "--no-compile", "-c", constraints, "Zope[wsgi]", wheel]
    subprocess.run(install, check=True, capture_output=True)

    package, = environment.glob("lib/python*/site-packages/maildrop")
    assert (package / "config").read_bytes() == (CHECKOUT / "config").read_bytes()
    python = environment / "bin" / "python"
    with RelayServer() as relay, MaildropDaemon(tmp_path, relay.port, scripts=package / "bin", PYTHON=python) as daemon:
        command = [environment / "bin" / "maildropctl", "-c", daemon.config, "status"]
        assert "running since" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
        site = ZopeSite(tmp_path / "site", scripts=environment / "bin")
        site.create({"config-path-1": daemon.config})
        site.run_script(SEND)
        daemon.wait_until(lambda: relay.accepted)
        assert relay.accepted[0].recipients == ("jane@example.com",)
        site.start()
        try:
            assert site.get("/MailHost/manage_main", login=True)[0] == 200
        finally:
            site.stop()


@pytest.mark.parametrize("origin", ["checkout", "sdist"])
def test_a_pip_install_carries_config_and_sample(origin, source, built, tmp_path):
    target = tmp_path / "target"
    place = source if origin == "checkout" else next(built.glob("*.tar.gz"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, place]
    subprocess.run(command, check=True, capture_output=True)
    installed = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert EXPECTED <= installed


def test_folders_copied_beside_each_other_by_hand_are_found(tmp_path):
    target = tmp_path / "lib"
    shutil.copytree(CHECKOUT / "Products", target / "Products")
    shutil.copytree(CHECKOUT / "maildrop", target / "maildrop")
    shutil.copy2(CHECKOUT / "config", target / "config")
    assert site_with(target, tmp_path) == [str(target / "config"), str(target / "maildrop"), "True"]


def test_all_of_it_copied_into_one_product_folder_is_found_as_in_2_3(tmp_path):
    product = tmp_path / "lib" / "Products" / "MaildropHost"
    shutil.copytree(CHECKOUT / "Products" / "MaildropHost", product)
    shutil.copytree(CHECKOUT / "maildrop", product / "maildrop")
    shutil.copy2(CHECKOUT / "config", product / "config")
    assert site_with(tmp_path / "lib", tmp_path) == [str(product / "config"), str(product / "maildrop"), "True"]
