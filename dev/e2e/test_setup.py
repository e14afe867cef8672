"""setup.sh on machines that lack something, with tools that only say what was asked of them."""
import shutil
import subprocess

import pytest
from platform_under_test import REPOSITORY

SETUP = REPOSITORY / "dev" / "setup.sh"
POLICY = "/usr/sbin/policy-rc.d"
OWN_TOOLS = ("bash", "dirname", "sed", "env", "cat")


@pytest.fixture
def machine(tmp_path):
    """Runs `setup.sh` where there are only these tools: name -> script."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in OWN_TOOLS:
        (tools / name).symlink_to(shutil.which(name))

    # Containers have a policy of their own, which is left alone.
    installer = tmp_path / "setup.sh"
    installer.write_text(SETUP.read_text().replace(POLICY, str(tmp_path / "policy-rc.d")))
    installer.chmod(0o755)

    def setup(purpose, **scripts):
        for name, script in scripts.items():
            tool = tools / name.replace("_", "-")
            tool.write_text(f"#!/bin/bash\n{script}\n")
            tool.chmod(0o755)
        environment = {"PATH": str(tools), "HOME": str(tmp_path), "ASKED": str(tmp_path / "asked")}
        run = subprocess.run(
            [str(installer), purpose], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        asked = tmp_path / "asked"
        return run, asked.read_text().splitlines() if asked.exists() else []

    return setup


def test_a_missing_toolchain_is_told(machine):
    run, _ = machine("build", cc="", curl="", pkg_config="")
    assert run.returncode == 1 and "https://sh.rustup.rs" in run.stderr, run


def test_what_building_needs_is_installed_and_who_may_not_install_is_told(machine):
    run, _ = machine("build", cc="", cargo="", pkg_config="", id="echo 1000", apt_get="")
    assert run.returncode == 1 and "run as root: apt-get install curl" in run.stderr, run
    sudo = 'echo "$*" >>$ASKED; [ "$1" != tee ] || cat >/dev/null'
    run, asked = machine("build", sudo=sudo)
    assert run.returncode == 0, run
    assert any(line.startswith("apt-get install") and line.endswith("curl") for line in asked), asked


def test_an_interrupted_installation_lets_services_start_again(machine, tmp_path):
    policy = tmp_path / "policy-rc.d"
    sudo = """echo "$*" >>$ASKED
    case "$1 $2" in tee*) cat >/dev/null ;; "apt-get install") kill -TERM $PPID ;; esac"""
    run, asked = machine("build", cc="", cargo="", id="echo 1000", apt_get="", sudo=sudo)
    assert run.returncode == 143, run
    assert f"tee {policy}" in asked and asked[-1] == f"rm -f {policy}", asked
